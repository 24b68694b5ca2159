"""In the manner of guided-diffusion's script of this name: bits per dimension of images."""

import argparse
import os

import numpy as np
import torch.distributed as dist
from guided_diffusion import dist_util, logger
from guided_diffusion.image_datasets import load_data
from guided_diffusion.script_util import (
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
    model.eval()
    data = load_data(
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        image_size=args.image_size,
        class_cond=args.class_cond,
        deterministic=True,
    )
    done, terms = 0, {"vb": [], "mse": [], "xstart_mse": []}
    while done < args.num_samples:
        batch, kwargs = next(data)
        batch = batch.to(dist_util.dev())
        kwargs = {k: v.to(dist_util.dev()) for k, v in kwargs.items()}
        result = diffusion.calc_bpd_loop(model, batch, clip_denoised=args.clip_denoised, model_kwargs=kwargs)
        for name, values in terms.items():
            mean = result[name].mean(dim=0) / dist.get_world_size()
            dist.all_reduce(mean)
            values.append(mean.detach().cpu().numpy())
        total = result["total_bpd"].mean() / dist.get_world_size()
        dist.all_reduce(total)
        done += dist.get_world_size() * len(batch)
        logger.log(f"done {done} samples: bpd={total.item()}")
    if dist.get_rank() == 0:
        for name, values in terms.items():
            np.savez(os.path.join(logger.get_dir(), f"{name}_terms.npz"), np.mean(np.stack(values), axis=0))
    dist.barrier()


def parser():
    defaults = {"data_dir": "", "clip_denoised": True, "num_samples": 4, "batch_size": 2, "model_path": ""}
    defaults.update(model_and_diffusion_defaults())
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
