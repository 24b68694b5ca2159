"""Between two images by way of their latents."""

from __future__ import annotations

import pytest
import torch
from closed_form import gaussian_model

import fastdiff
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.sampling.interpolate import slerp

DIFFUSION = fastdiff.DiffusionConfig(steps=400, prediction="x0")


def test_the_ends_are_the_images_and_the_way_is_smooth() -> None:
    model = gaussian_model(GaussianDiffusion(DIFFUSION), 0.0, 0.5)
    g = torch.Generator().manual_seed(0)
    a, b = (0.5 * torch.randn(2, 1, 6, 6, generator=g)).clamp(-1, 1)
    options = {"diffusion": DIFFUSION, "steps": 200, "shape": (1, 6, 6), "clip": False, "progress": False}
    row = fastdiff.interpolate(model, a, b, 5, **options)
    assert row.shape == (5, 1, 6, 6)
    torch.testing.assert_close(row[0], a, rtol=0, atol=0.04)
    torch.testing.assert_close(row[-1], b, rtol=0, atol=0.04)
    # For Gaussian data the way between is the latents' own, scaled.
    torch.testing.assert_close(row, slerp(row[0], row[-1], torch.linspace(0, 1, 5)), rtol=0, atol=0.04)


def test_slerp_keeps_the_norm() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 100, generator=g)
    b = b / b.norm() * a.norm()
    ways = slerp(a, b, torch.linspace(0, 1, 7))
    torch.testing.assert_close(ways.flatten(1).norm(dim=1), a.norm().expand(7))
    torch.testing.assert_close(ways[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]))[0], a)


@pytest.mark.parametrize(
    ("shapes", "n", "options", "said"),
    [
        (((1, 4, 4), (1, 4, 5)), 3, {}, "one shape"),
        (((1, 4, 4), (1, 4, 4)), 1, {}, "at least 2"),
        (((1, 4, 4), (1, 4, 4)), 3, {"sampler": "dpmpp"}, "encoding reverses"),
    ],
)
def test_mistakes(shapes, n: int, options: dict, said: str) -> None:
    model = gaussian_model(GaussianDiffusion(DIFFUSION))
    with pytest.raises(FastdiffError, match=said):
        fastdiff.interpolate(
            model,
            *map(torch.zeros, shapes),
            n,
            shape=(1, 4, 4),
            diffusion=DIFFUSION,
            progress=False,
            **options,
        )
