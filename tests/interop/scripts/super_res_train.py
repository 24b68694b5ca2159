"""In the manner of guided-diffusion's script of this name: train an upsampler."""

import argparse

import torch.nn.functional as F
from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from guided_diffusion.train_util import TrainLoop


def main():
    args = parser().parse_args()
    dist_util.setup_dist()
    logger.configure()
    model, diffusion = sr_create_model_and_diffusion(
        **args_to_dict(args, sr_model_and_diffusion_defaults().keys())
    )
    model.to(dist_util.dev())
    TrainLoop(
        model=model,
        diffusion=diffusion,
        data=superres_data(args),
        batch_size=args.batch_size,
        microbatch=args.microbatch,
        lr=args.lr,
        ema_rate=args.ema_rate,
        log_interval=args.log_interval,
        save_interval=args.save_interval,
        resume_checkpoint=args.resume_checkpoint,
        schedule_sampler=create_named_schedule_sampler(args.schedule_sampler, diffusion),
        lr_anneal_steps=args.lr_anneal_steps,
    ).run_loop()


def superres_data(args):
    data = load_data(
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        image_size=args.large_size,
        class_cond=args.class_cond,
    )
    for large, kwargs in data:
        kwargs["low_res"] = F.interpolate(large, args.small_size, mode="area")
        yield large, kwargs


def parser():
    defaults = {
        "data_dir": "",
        "schedule_sampler": "uniform",
        "lr": 1e-4,
        "lr_anneal_steps": 0,
        "batch_size": 1,
        "microbatch": -1,
        "ema_rate": "0.9999",
        "log_interval": 10,
        "save_interval": 10000,
        "resume_checkpoint": "",
    }
    defaults.update(sr_model_and_diffusion_defaults())
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
