"""Super-resolution and colourisation: the known part is kept, the rest has the model's distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff import DiffusionConfig, FastdiffError, Observe
from fastdiff.diffusion.continuous import make_process

MEAN, STD = 0.2, 0.5  # of the data, independent pixels
FEW = DiffusionConfig(parametrisation="edm", few_steps=True)
EDM = DiffusionConfig(parametrisation="edm")
RUNS: list[tuple[DiffusionConfig, dict[str, Any]]] = [
    (FEW, {}),  # its own sampler
    (FEW, {"steps": 2}),
    (EDM, {"steps": 200, "repeats": 1}),
    (EDM, {"steps": 500, "repeats": 2}),  # fewer have too little variance, as the steps then have
    (EDM, {"sampler": "heun", "steps": 30}),
]


class Exact:
    """The exact denoiser, or consistency function, of N(MEAN, STD^2)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self._process, self._few = make_process(config), config.few_steps

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        sigma = torch.exp(time[:1].double() / 250)
        signal = float(self._process.q_sample(torch.ones(1), sigma, torch.zeros(1)))
        u, w = self._process.to_x0(signal, float(sigma) * signal)
        root = math.sqrt(STD**2 + float(sigma) ** 2)
        factor = STD / root if self._few else (STD / root) ** 2
        return (MEAN + factor * (x / signal - MEAN) - u * x) / w


def made(
    method: Any, config: DiffusionConfig, known: Tensor, shape: tuple[int, ...], n: int, **options: Any
) -> Tensor:
    options |= {"shape": shape, "diffusion": config, "clip": False, "progress": False, "seed": 4}
    return method(Exact(config), known, n, **options).double()


def assert_free_part(free: Tensor, share: float) -> None:
    """Mean 0 and variance STD^2 times its share of the dimensions, to four standard errors and the steps' error."""
    count = free.numel() * share
    assert abs(free.mean()) < 1e-5
    assert free.square().mean().item() == pytest.approx(STD**2 * share, rel=4 * math.sqrt(2 / count) + 0.03)


@pytest.mark.parametrize(("config", "options"), RUNS, ids=str)
def test_blocks_keep_their_averages(config: DiffusionConfig, options: dict[str, Any]) -> None:
    small = torch.linspace(-0.6, 0.9, 2 * 4 * 2).reshape(2, 1, 4, 2)
    found = made(fastdiff.super_resolve, config, small, (1, 16, 4), 60, **options)
    assert found.shape == (120, 1, 16, 4)
    averages = torch.nn.functional.avg_pool2d(found, (4, 2))
    torch.testing.assert_close(averages, small.repeat_interleave(60, 0).double(), rtol=0, atol=2e-6)
    assert_free_part(found - averages.repeat_interleave(4, -2).repeat_interleave(2, -1), 7 / 8)


@pytest.mark.parametrize(("config", "options"), RUNS, ids=str)
def test_colours_keep_their_luma(config: DiffusionConfig, options: dict[str, Any]) -> None:
    """The direction of luma has the grey image; the two others have what the model gives them."""
    grey = torch.linspace(-0.9, 0.9, 16).reshape(1, 4, 4)
    found = made(fastdiff.colourise, config, grey, (3, 4, 4), 120, **options)
    weights = torch.tensor([0.2989, 0.5870, 0.1140], dtype=torch.float64)
    luma = torch.einsum("c,nchw->nhw", weights, found)
    torch.testing.assert_close(luma, grey.double().expand(120, 4, 4), rtol=0, atol=2e-6)
    basis = torch.linalg.qr(torch.stack([weights, torch.eye(3).double()[0], torch.eye(3).double()[1]], 1)).Q[
        :, 1:
    ]
    free = torch.einsum("ck,nchw->nkhw", basis, found - MEAN)
    assert free.square().mean().item() == pytest.approx(STD**2, rel=4 * math.sqrt(2 / free.numel()) + 0.03)
    assert free.mean().abs() < 4 * STD / math.sqrt(free.numel()) + 0.01


def test_an_image_is_the_same_in_any_batch() -> None:
    small = torch.linspace(-0.6, 0.9, 8).reshape(2, 1, 2, 2)
    together = made(fastdiff.super_resolve, FEW, small, (1, 8, 8), 3)
    apart = made(fastdiff.super_resolve, FEW, small, (1, 8, 8), 3, batch_size=2)
    assert torch.equal(together, apart)


def test_a_mask_is_a_projection() -> None:
    """Observe with the projection on known pixels is Inpaint."""
    image, mask = torch.linspace(-1, 1, 16).reshape(1, 4, 4), (torch.arange(16) % 3 == 0).reshape(1, 4, 4)
    options: dict[str, Any] = {"shape": (1, 4, 4), "diffusion": EDM, "steps": 5, "seed": 1, "progress": False}
    project = lambda x: torch.where(mask, 0.0, x)  # noqa: E731
    found = [
        fastdiff.sample(Exact(EDM), 3, condition=condition, **options)
        for condition in (Observe(image, project), fastdiff.Inpaint(image, mask))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("method", "known", "options", "sentence"),
    [
        (fastdiff.super_resolve, torch.zeros(1, 3, 3), {}, r"divides the model's \[8, 8\], got \[3, 3\]"),
        (fastdiff.super_resolve, torch.full((1, 4, 4), 2.0), {}, r"image must lie in \[-1, 1\]"),
        (fastdiff.super_resolve, torch.full((1, 4, 4), torch.nan), {"clip": False}, "finite, but has NaN"),
        (fastdiff.super_resolve, torch.zeros(1, 4, 4), {"n": 0}, "at least one image and one result"),
        (
            fastdiff.super_resolve,
            torch.zeros(1, 4, 4),
            {"repeats": 0},
            "repeats must be a whole number of at least 1",
        ),
        (fastdiff.super_resolve, torch.zeros(3, 4, 4), {}, "image must have shape"),
        (fastdiff.colourise, torch.zeros(1, 8, 8), {}, "only a model of RGB images can colourise"),
        (fastdiff.colourise, torch.zeros(3, 8, 8), {"shape": (3, 8, 8)}, r"grey must have shape \[1, 8, 8\]"),
    ],
)
def test_what_does_not_fit(method: Any, known: Tensor, options: dict[str, Any], sentence: str) -> None:
    options = {"shape": (1, 8, 8), "diffusion": EDM, "steps": 3, "progress": False} | options
    with pytest.raises(FastdiffError, match=sentence):
        method(Exact(EDM), known, **options)


def test_a_function_that_is_no_projection() -> None:
    image = torch.ones(1, 4, 4)
    for project in (lambda x: x / 2, lambda x: x.mean((1, 2, 3))):
        with pytest.raises(FastdiffError, match="project must be a projection"):
            Observe(image, project).fitted(2, (1, 4, 4))
