"""In the manner of guided-diffusion's script of this name: samples, one batch a process, gathered into one npz."""

import argparse
import os

import numpy as np
import torch as th
import torch.distributed as dist
from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
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
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults().keys()))
    model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
    model.to(dist_util.dev())
    if args.use_fp16:
        model.convert_to_fp16()
    model.eval()
    images, labels = [], []
    while len(images) * args.batch_size < args.num_samples:
        kwargs = {}
        if args.class_cond:
            kwargs["y"] = th.randint(low=0, high=NUM_CLASSES, size=(args.batch_size,), device=dist_util.dev())
        loop = diffusion.ddim_sample_loop if args.use_ddim else diffusion.p_sample_loop
        shape = (args.batch_size, 3, args.image_size, args.image_size)
        sample = loop(model, shape, clip_denoised=args.clip_denoised, model_kwargs=kwargs)
        sample = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()
        gathered = [th.zeros_like(sample) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, sample)
        images.extend(part.cpu().numpy() for part in gathered)
        if args.class_cond:
            parts = [th.zeros_like(kwargs["y"]) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, kwargs["y"])
            labels.extend(part.cpu().numpy() for part in parts)
        logger.log(f"created {len(images) * args.batch_size} samples")
    if dist.get_rank() == 0:
        array = np.concatenate(images)[: args.num_samples]
        out = os.path.join(logger.get_dir(), f"samples_{'x'.join(map(str, array.shape))}.npz")
        arrays = [np.concatenate(labels)[: args.num_samples]] if args.class_cond else []
        np.savez(out, array, *arrays)
    dist.barrier()
    logger.log("sampling complete")


def parser():
    defaults = {"clip_denoised": True, "num_samples": 4, "batch_size": 2, "use_ddim": False, "model_path": ""}
    defaults.update(model_and_diffusion_defaults())
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
