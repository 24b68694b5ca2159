"""diffusers' UNet2DModel, sampled by fastdiff's samplers, and its own pipeline on fastdiff's ops.

The weights are random here; load yours with ``UNet2DModel.from_pretrained``. Run: python examples/diffusers_unet.py
"""

from typing import Any, cast

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import fastdiff


def main() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()

    # 1. Any callable f(x, t) is a model, with any of fastdiff's samplers.
    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return unet(x, t).sample

    images = fastdiff.sample(model, 2, shape=(3, 32, 32), predicts="epsilon", sampler="dpmpp", steps=10)

    # 2. diffusers' own pipeline: its layers and its scheduler on fastdiff's ops, by one line.
    pipe = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        result = cast(Any, pipe(2, generator, num_inference_steps=10, output_type="np"))
        return torch.from_numpy(result.images)

    before = run()
    with fastdiff.accelerate(pipe) as handle:
        print(handle)
        print(f"the pipeline's images are off by {(run() - before).abs().max():.0e}")
    return images, before


if __name__ == "__main__":
    main()
