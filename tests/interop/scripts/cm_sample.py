"""In the manner of consistency_models' image_sample: samples of an EDM or consistency model, gathered into one npz."""

import argparse
import os

import numpy as np
import torch as th
import torch.distributed as dist
from cm import dist_util, logger
from cm.karras_diffusion import karras_sample
from cm.random_util import get_generator
from cm.script_util import (
    NUM_CLASSES,
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)


def main():
    args = parser().parse_args()
    dist_util.setup_dist()
    logger.configure()
    of_model = args_to_dict(args, model_and_diffusion_defaults().keys())
    model, diffusion = create_model_and_diffusion(
        **of_model, distillation="consistency" in args.training_mode
    )
    model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
    model.to(dist_util.dev())
    if args.use_fp16:
        model.convert_to_fp16()
    model.eval()
    points = tuple(int(point) for point in args.ts.split(",")) if args.sampler == "multistep" else None
    generator = get_generator(args.generator, args.num_samples, args.seed)
    images = []
    while len(images) * args.batch_size < args.num_samples:
        kwargs = {}
        if args.class_cond:
            kwargs["y"] = th.randint(low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
        sample = karras_sample(
            diffusion,
            model,
            (args.batch_size, 3, args.image_size, args.image_size),
            steps=args.steps,
            model_kwargs=kwargs,
            device=dist_util.dev(),
            sampler=args.sampler,
            s_churn=args.s_churn,
            generator=generator,
            ts=points,
        )
        sample = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()
        gathered = [th.zeros_like(sample) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, sample)
        images.extend(part.cpu().numpy() for part in gathered)
    if dist.get_rank() == 0:
        array = np.concatenate(images)[: args.num_samples]
        np.savez(os.path.join(logger.get_dir(), "samples.npz"), array)
    dist.barrier()


def parser():
    defaults = {
        "training_mode": "edm",
        "generator": "determ",
        "num_samples": 4,
        "batch_size": 2,
        "sampler": "heun",
    }
    defaults.update({"s_churn": 0.0, "steps": 4, "model_path": "", "seed": 42, "ts": ""})
    defaults.update(model_and_diffusion_defaults())
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
