"""In the manner of guided-diffusion's script of this name: upsample the samples of another model."""

import argparse
import os

import blobfile as bf
import numpy as np
import torch as th
import torch.distributed as dist
from guided_diffusion import dist_util, logger
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)


def main():
    args = parser().parse_args()
    dist_util.setup_dist()
    logger.configure()
    model, diffusion = sr_create_model_and_diffusion(
        **args_to_dict(args, sr_model_and_diffusion_defaults().keys())
    )
    model.load_state_dict(dist_util.load_state_dict(args.model_path, map_location="cpu"))
    model.to(dist_util.dev())
    model.eval()
    with bf.BlobFile(args.base_samples, "rb") as file:
        base = np.load(file)["arr_0"][dist.get_rank() :: dist.get_world_size()][: args.batch_size]
    low_res = (th.from_numpy(base).float() / 127.5 - 1.0).permute(0, 3, 1, 2).to(dist_util.dev())
    sample = diffusion.p_sample_loop(
        model,
        (len(low_res), 3, args.large_size, args.large_size),
        clip_denoised=args.clip_denoised,
        model_kwargs={"low_res": low_res},
    )
    sample = ((sample + 1) * 127.5).clamp(0, 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()
    gathered = [th.zeros_like(sample) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, sample)
    if dist.get_rank() == 0:
        array = np.concatenate([part.cpu().numpy() for part in gathered])
        np.savez(os.path.join(logger.get_dir(), f"samples_{'x'.join(map(str, array.shape))}.npz"), array)
    dist.barrier()


def parser():
    defaults = {"clip_denoised": True, "batch_size": 2, "model_path": "", "base_samples": ""}
    defaults.update(sr_model_and_diffusion_defaults())
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
