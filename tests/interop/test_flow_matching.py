"""Rectified flows beside diffusers: the same model function, levels and noise give the same images."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff

N, SHAPE = 3, (2, 4, 4)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """A model without sense, of state and time."""
    mix = torch.tensor([[0.6, -0.9], [0.7, 0.4]], dtype=x.dtype)
    return torch.tanh(
        torch.einsum("oc,nchw->nohw", mix, x) + torch.cos(5 * t.to(x.dtype))[:, None, None, None]
    )


def diffusers_run(scheduler: diffusers.FlowMatchEulerDiscreteScheduler, z: Tensor) -> Tensor:
    """In float32, in which the scheduler computes whatever it is given."""
    x = scheduler.sigmas[0] * z.float()
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, (t / 1000).expand(N)), t, x).prev_sample
    return x


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_euler(steps: int, shift: float) -> None:
    """To float32's rounding its images, and to float64's those of x' = x + (t' - t) v at its levels t."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    given = np.linspace(0.98, 0.98 / steps, steps)
    scheduler.set_timesteps(sigmas=given.tolist())
    levels = [float(t) for t in scheduler.sigmas]  # shifted, and 0 at the end
    np.testing.assert_allclose(levels[:-1], shift * given / (1 + (shift - 1) * given), rtol=1e-6)
    z = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = fastdiff.sample(
        velocity,
        N,
        shape=SHAPE,
        diffusion=fastdiff.DiffusionConfig(parametrisation="flow"),
        sampler="euler",
        sigmas=[t / (1 - t) for t in levels],
        noise=z,
        clip=False,
        progress=False,
    )
    x = levels[0] * z
    for now, after in zip(levels, levels[1:], strict=False):
        x = x + (after - now) * velocity(x, torch.full((N,), now, dtype=torch.float64))
    torch.testing.assert_close(
        found.double(), x, rtol=0, atol=1e-6 if found.dtype == torch.float32 else 1e-12
    )
    torch.testing.assert_close(found.float(), diffusers_run(scheduler, z), rtol=0, atol=2e-6)
