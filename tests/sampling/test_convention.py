"""Models of other conventions: the same samples, whatever they predict and whatever they are told of the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_form import gaussian_model
from torch import Tensor, nn

import fastdiff
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError

MEAN, STD = 0.3, 0.4
DIFFUSION = fastdiff.DiffusionConfig(steps=200)
PROCESS = GaussianDiffusion(DIFFUSION)


def _x0(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x = x_0 + sigma epsilon] for x_0 ~ N(MEAN, STD^2): an EDM or k-diffusion denoiser."""
    s = sigma.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN)


def _epsilon(x: Tensor, sigma: Tensor) -> Tensor:
    return (x - _x0(x, sigma)) / sigma.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)


def _v(x: Tensor, sigma: Tensor) -> Tensor:
    """sqrt(abar) epsilon - sqrt(1 - abar) x_0."""
    s = sigma.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return (_epsilon(x, sigma) - s * _x0(x, sigma)) / torch.sqrt(1 + s**2)


def _run(model: Any, sampler: str, **options: Any) -> Tensor:
    return fastdiff.sample(
        model, 4, shape=(1, 6, 5), sampler=sampler, steps=8, progress=False, clip=False, seed=5, **options
    )


def _truth(sampler: str, **options: Any) -> Tensor:
    return _run(gaussian_model(PROCESS, MEAN, STD), sampler, diffusion=DIFFUSION, predicts="x0", **options)


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "v"])
@pytest.mark.parametrize(
    ("sampler", "spacing"), [("ddim", None), ("dpmpp", None), ("heun", "karras"), ("ancestral", None)]
)
def test_told_sigma(sampler: str, spacing: str | None, predicts: str) -> None:
    model = {"x0": _x0, "epsilon": _epsilon, "v": _v}[predicts]
    options = {"spacing": spacing} if spacing else {}
    got = _run(model, sampler, diffusion=DIFFUSION, predicts=predicts, time="sigma", **options)
    torch.testing.assert_close(got, _truth(sampler, **options), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_told_continuous_time(sampler: str) -> None:
    exact = gaussian_model(PROCESS, MEAN, STD)
    seen = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return exact(x, t.double() * 199)

    got = _run(model, sampler, diffusion=DIFFUSION, predicts="x0", time="continuous")
    torch.testing.assert_close(got, _truth(sampler), rtol=1e-3, atol=1e-3)
    assert max(seen) <= 1 and min(seen) >= 0


def test_a_module_told_sigma_keeps_its_dtype() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            assert x.dtype == torch.bfloat16
            return _x0(x.float(), sigma.float()).to(x.dtype)

    got = _run(Net(), "dpmpp", diffusion=DIFFUSION, predicts="x0", time="sigma")
    torch.testing.assert_close(got, _truth("dpmpp"), rtol=0.05, atol=0.05)


def test_saying_what_it_predicts_is_enough() -> None:
    made = fastdiff.sample(_x0, 500, shape=(1, 4), predicts="x0", time="sigma", steps=30, progress=False)
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(made.std()) == pytest.approx(STD, abs=0.06)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predicts": "noise"}, "predicts must be one of epsilon, x0, v, got 'noise'"),
        (
            {"predicts": "x0", "time": "seconds"},
            "time must be one of index, continuous, sigma, got 'seconds'",
        ),
        ({}, "say at least what it predicts"),
    ],
)
def test_mistakes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(FastdiffError, match=said):
        fastdiff.sample(_x0, 1, shape=(1, 4), **options)
