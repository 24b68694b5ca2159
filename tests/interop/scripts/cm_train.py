"""In the manner of consistency_models' edm_train and cm_train: an EDM model, or one distilled from it."""

import argparse

from cm import dist_util, logger
from cm.image_datasets import load_data
from cm.resample import create_named_schedule_sampler
from cm.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    cm_train_defaults,
    create_ema_and_scales_fn,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from cm.train_util import CMTrainLoop, TrainLoop


def main():
    args = parser().parse_args()
    dist_util.setup_dist()
    logger.configure()
    of_model = args_to_dict(args, model_and_diffusion_defaults().keys())
    consistency = "consistency" in args.training_mode
    model, diffusion = create_model_and_diffusion(**of_model, distillation=consistency)
    model.to(dist_util.dev())
    loop, more = TrainLoop, {}
    if consistency:
        loop, more = CMTrainLoop, others(args, of_model, model)
    of_data = {"data_dir": args.data_dir, "image_size": args.image_size, "class_cond": args.class_cond}
    loop(
        model=model,
        diffusion=diffusion,
        data=load_data(batch_size=args.batch_size, **of_data),
        batch_size=args.batch_size,
        microbatch=args.microbatch,
        lr=args.lr,
        ema_rate=args.ema_rate,
        log_interval=1,
        save_interval=args.save_interval,
        resume_checkpoint=args.resume_checkpoint,
        use_fp16=args.use_fp16,
        schedule_sampler=create_named_schedule_sampler(args.schedule_sampler, diffusion),
        lr_anneal_steps=args.lr_anneal_steps,
        **more,
    ).run_loop()


def others(args, of_model, model):
    """The target, the teacher and the schedule of levels."""
    target, _ = create_model_and_diffusion(**of_model, distillation=True)
    target.load_state_dict(model.state_dict())
    teacher, teacher_diffusion = None, None
    if args.teacher_model_path:
        of_teacher = {**of_model, "dropout": args.teacher_dropout}
        teacher, teacher_diffusion = create_model_and_diffusion(**of_teacher)
        teacher.load_state_dict(dist_util.load_state_dict(args.teacher_model_path, map_location="cpu"))
    return {
        "target_model": target,
        "teacher_model": teacher,
        "teacher_diffusion": teacher_diffusion,
        "training_mode": args.training_mode,
        "ema_scale_fn": create_ema_and_scales_fn(
            target_ema_mode=args.target_ema_mode,
            start_ema=args.start_ema,
            scale_mode=args.scale_mode,
            start_scales=args.start_scales,
            end_scales=args.end_scales,
            total_steps=args.total_training_steps,
            distill_steps_per_iter=args.distill_steps_per_iter,
        ),
        "total_training_steps": args.total_training_steps,
    }


def parser():
    defaults = {
        "data_dir": "",
        "schedule_sampler": "uniform",
        "lr": 1e-4,
        "lr_anneal_steps": 2,
        "batch_size": 2,
    }
    defaults.update({"microbatch": -1, "ema_rate": "0.9", "save_interval": 2, "resume_checkpoint": ""})
    defaults.update(model_and_diffusion_defaults())
    defaults.update({**cm_train_defaults(), "training_mode": "edm", "total_training_steps": 2})
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
