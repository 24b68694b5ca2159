"""Samplers against k-diffusion's and diffusers' own results on the exact denoiser of a mixture, in float64.

``peers.json`` has what their code returns for the mixture, the Karras grid from 80 to 0.02, the states and the noise
below, after 8, 18 and 50 steps. EDM's algorithms 1 and 2 are k-diffusion's ``heun``, with and without churn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from closed_form import mixture_mean
from torch import Tensor

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.loop import run
from fastdiff.sampling.plan import Row, make_plan
from fastdiff.sampling.samplers import SAMPLERS, Options, dpm_solver
from fastdiff.sampling.samplers.points import points

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text())
PROCESS = GaussianDiffusion(DiffusionConfig(prediction="x0"))
WEIGHTS, MEANS, STDS = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.0, 0.8], [0.25, 0.4]))
HIGH, LOW = 80.0, 0.02
START = torch.tensor([[-1.5], [-0.4], [0.1], [0.7], [1.6]], dtype=torch.float64)  # times sigma
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}


def noise(row: int) -> Tensor:
    """The noise that the row draws, [5,1]."""
    return torch.from_numpy(np.random.RandomState(1000 + row).standard_normal((5, 1)))


def exploding(sigmas: np.ndarray) -> Levels:
    """x = x_0 + sigma z, as k-diffusion has it; the model's time is sigma."""
    return Levels(np.ones_like(sigmas), sigmas, sigmas, exploding)


def preserving(sigmas: np.ndarray) -> Levels:
    """x = (x_0 + sigma z) / sqrt(1 + sigma^2), as diffusers has it."""
    signal = 1 / np.sqrt(1 + sigmas**2)
    return Levels(signal, signal * sigmas, sigmas, preserving)


def ending(levels: Callable[[np.ndarray], Levels], rows: list[Row], times_start: Tensor = START) -> Tensor:
    """The end of a run from START at the level of the first row, [5]."""

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        signal = torch.from_numpy(levels(sigma[:1].numpy()).signal)
        return mixture_mean(x / signal, sigma[0], WEIGHTS, MEANS, STDS)

    plan = make_plan(rows, PROCESS)
    x = times_start * rows[0].noise
    return run(plan, model, x, clip=False, step_noise=lambda row, x: noise(row))[:, 0]


def cases(peer: str) -> list[tuple[str, int]]:
    return [(name, int(steps)) for steps, found in PEERS[peer].items() for name in found]


@pytest.mark.parametrize(
    ("name", "steps", "levels"),
    [(*case, preserving) for case in cases("k-diffusion")]
    + [(*case, exploding) for case in cases("k-diffusion") if case[1] == 18],
)
def test_k_diffusion(name: str, steps: int, levels) -> None:
    sampler, *detail = name.split()
    grid = levels(np.append(karras_sigmas(steps, LOW, HIGH), 0.0))
    takes = dict(SAMPLERS[sampler].takes)
    if "eta" in takes and name != "dpm_fast":
        takes["s_noise"] = 1.01
    if detail[:1] == ["eta"]:
        takes["eta"] = float(detail[1])
    elif detail == ["churn"]:
        takes |= CHURN
    elif detail:
        takes["order"] = int(detail[0])
    if sampler == "dpm_fast":  # which ends at the last noisy level, and counts model calls
        level = points(grid)
        rows = dpm_solver.noisy_rows(grid, level[0], level[-2], steps, Options(**takes))
    else:
        rows = SAMPLERS[sampler].rows(grid, Options(**takes))
    end = ending(levels, rows)
    if sampler == "dpm_fast":
        end = end / grid.signal[-2]
    torch.testing.assert_close(
        end, torch.tensor(PEERS["k-diffusion"][str(steps)][name], dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("name", "steps"), cases("diffusers"))
def test_diffusers(name: str, steps: int) -> None:
    """UniPC and DEIS also stop at a noisy level; iPNDM has levels of its own, here without its pure noise."""
    sampler, *detail = name.split()
    takes = SAMPLERS[sampler].takes | ({"order": int(detail[0])} if detail else {})
    if sampler == "ipndm":
        noise_of = np.sin(np.linspace(1, 0, steps + 1)[1:] * math.pi / 2) ** 2
        sigmas = noise_of / np.sqrt(1 - noise_of**2)

        def levels(at: np.ndarray) -> Levels:
            return Levels(1 / np.sqrt(1 + at**2), at / np.sqrt(1 + at**2), at)

        first = HIGH / math.hypot(1, HIGH) / noise_of[0]
    else:
        noisy = detail[1:] == ["noisy"]
        sigmas = (
            karras_sigmas(steps + 1, LOW, HIGH) if noisy else np.append(karras_sigmas(steps, LOW, HIGH), 0)
        )
        levels, first = preserving, 1.0
    end = ending(levels, SAMPLERS[sampler].rows(levels(sigmas), Options(**takes)), first * START)
    torch.testing.assert_close(
        end, torch.tensor(PEERS["diffusers"][str(steps)][name], dtype=torch.float64), rtol=0, atol=1e-12
    )
