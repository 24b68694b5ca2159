"""A denoiser in the convention of EDM and k-diffusion, ``denoise(x, sigma)``, sampled by fastdiff.

Here it is exact: E[x_0 | x_0 + sigma noise] for images that are black or white with some grey around it. Yours is a
network. Run: python examples/k_diffusion_denoiser.py
"""

import torch

import fastdiff

LEVELS = torch.tensor([-0.8, 0.8])
SPREAD = 0.05


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    variance = (SPREAD**2 + sigma**2).reshape(-1, 1, 1, 1, 1)
    distance = x[..., None] - LEVELS
    weight = torch.softmax(-(distance**2) / (2 * variance), dim=-1)
    return (weight * (LEVELS + SPREAD**2 / variance * distance)).sum(-1)


def main() -> torch.Tensor:
    images = fastdiff.sample(
        denoise, 16, shape=(1, 8, 8), predicts="x0", time="sigma", sampler="heun", spacing="karras", steps=18
    )
    near = (images[..., None] - LEVELS).abs().min(-1).values
    print(
        f"{len(images)} images; {(near < 4 * SPREAD).float().mean():.0%} of their pixels are at one of the levels"
    )
    return images


if __name__ == "__main__":
    main()
