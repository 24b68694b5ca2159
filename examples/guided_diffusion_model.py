"""A guided-diffusion model, made by that package's own script_util, sampled by fastdiff in 12 steps instead of 250.

Only the first import differs from guided-diffusion. The weights are random here; load a checkpoint with
``model.load_state_dict(dist_util.load_state_dict(path))`` as there. Run: python examples/guided_diffusion_model.py
"""

import torch

import fastdiff
from fastdiff.interop.guided_diffusion.script_util import (
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)


def main() -> torch.Tensor:
    options = model_and_diffusion_defaults()
    options.update(
        image_size=64, num_channels=32, num_res_blocks=1, learn_sigma=True, noise_schedule="cosine"
    )
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(**options)
    process = fastdiff.DiffusionConfig(schedule="cosine", variance="learned_range")
    images = fastdiff.sample(model, 2, shape=(3, 64, 64), diffusion=process, sampler="dpmpp", steps=12)
    print(f"{list(images.shape)} in [{images.min():.2f}, {images.max():.2f}]")
    return images


if __name__ == "__main__":
    main()
