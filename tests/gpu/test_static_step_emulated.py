"""The captured loop's step with the CUDA kernel of reverse_step, emulated: the step's number is read on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.sampling.loop import run
from fastdiff.sampling.samplers import sampling_plan
from fastdiff.sampling.step import StaticStep, make_step


def _model(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([0.3 * x + t.reshape(-1, 1, 1, 1) / 1000, -x.abs()], 1)


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "dpmpp"])
def test_static_step_equals_the_loop(emulated_cuda: None, sampler: str) -> None:
    plan = sampling_plan(
        GaussianDiffusion(DiffusionConfig(variance="learned_range")), sampler=sampler, steps=4
    )
    g = torch.Generator().manual_seed(0)
    x, seeds = torch.randn(2, 3, 5, 7, generator=g), torch.tensor([3, -4])
    with use_backend("emulation"):
        expected = run(plan, _model, x, seeds=seeds)
        with torch.inference_mode():
            static = StaticStep(make_step(plan, _model, x, {}, seeds=seeds), plan, x)
            for history in plan.history:
                static(history)
    assert torch.equal(static.x, expected)
    with use_backend("cpu"):
        torch.testing.assert_close(run(plan, _model, x, seeds=seeds), expected, rtol=1e-4, atol=1e-5)
