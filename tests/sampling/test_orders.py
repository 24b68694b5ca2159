"""Moments and orders of every sampler for Gaussian data, exactly: what it does is then linear in x_T and the noise.

One run with a sample for x_T = 0, one for x_T = 1 and one for each row's noise gives all coefficients, and so the mean
and the variance of the result, without drawing anything.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.sampling import Sampler
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.loop import run
from fastdiff.sampling.plan import make_plan
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS, SAMPLERS, Options, dpm_solver
from fastdiff.sampling.samplers.points import points

MEAN, STD, HIGH, LOW = 0.3, 0.5, 80.0, 0.02
PROCESS = GaussianDiffusion(DiffusionConfig(prediction="x0"))


def exploding(sigmas: np.ndarray) -> Levels:
    return Levels(np.ones_like(sigmas), sigmas, sigmas, exploding)


def exact(x, sigma):
    """E[x_0 | x], x = x_0 + sigma z."""
    return MEAN + STD**2 / (STD**2 + sigma[0] ** 2) * (x - MEAN)


def errors(sampler: str, steps: int, **options) -> tuple[float, float]:
    """The mean's error, and the variance's relative one, at sigma = LOW after a start from the exact N at HIGH."""
    grid = exploding(karras_sigmas(steps + 1, LOW, HIGH))
    made = Options(**{**SAMPLERS[sampler].takes, **options})
    if sampler == "dpm_fast":
        level = points(grid)
        rows = dpm_solver.noisy_rows(grid, level[0], level[-1], 3 * steps + 2, made)
    else:
        rows = SAMPLERS[sampler].rows(grid, made)
    n = len(rows) + 2
    x, unit = torch.full((n, 1), MEAN, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    x[1] += 1
    plan = make_plan(rows, PROCESS)
    out = run(plan, exact, x, clip=False, step_noise=lambda row, x: unit[:, row + 2 : row + 3])[:, 0]
    of_start, *of_noise = (out[1:] - out[0]).tolist()
    variance = of_start**2 * (STD**2 + rows[0].noise ** 2) + sum(b**2 for b in of_noise)
    return float(out[0]) - MEAN, variance / (STD**2 + LOW**2) - 1


# (order from 160 to 320 steps, relative error of the variance at 320)
MEASURED = {
    "ancestral": (0.97, -3.3e-2),
    "ddim": (0.99, -1.6e-2),
    "euler": (0.99, -1.6e-2),
    "euler_ancestral": (0.97, -3.3e-2),
    "heun": (2.01, 2.2e-4),
    "dpm_2": (2.01, 1.3e-4),
    "dpm_2_ancestral": (2.01, 5.8e-4),
    "lms": (3.90, -1.9e-6),
    "dpmpp": (2.02, 2.2e-4),
    "dpmpp_2s": (1.99, -1.3e-4),
    "dpmpp_3m": (1.93, 5.7e-5),
    "dpmpp_2s_ancestral": (1.98, -5.7e-4),
    "dpmpp_sde": (2.13, -1.6e-4),
    "dpmpp_2m_sde": (2.02, 5.8e-4),
    "dpmpp_2m_sde_heun": (2.03, 9.7e-4),
    "dpmpp_3m_sde": (1.97, 2.9e-4),
    "unipc": (3.50, 4.9e-6),
    "unipc_bh1": (3.29, 1.0e-5),
    "deis": (2.01, -1.2e-4),
    "ipndm": (2.01, 7.2e-5),
    "pndm": (2.01, 7.2e-5),
    "dpm_fast": (3.00, None),
    "restart": (2.01, None),
}
ONE_CALL = ("lcm",)  # has no order: it is exact where a model's answers are images


def test_every_sampler_has_its_order_here() -> None:
    assert {*MEASURED, *ONE_CALL} == set(DIFFUSION_SAMPLERS)


@pytest.mark.parametrize("sampler", MEASURED)
def test_moments_and_order(sampler: str) -> None:
    order, error = MEASURED[sampler]
    found = []
    for steps in (160, 320):
        own = {"restarts": ((0.1, 2.0, 1, steps // 2),)} if sampler == "restart" else {}
        mean, variance = errors(sampler, steps, **own)
        assert abs(mean) < 1e-12  # all samplers keep the mean
        found.append(variance)
    assert math.log2(found[0] / found[1]) == pytest.approx(order, abs=0.05)
    if error is not None:
        assert found[1] == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize(
    ("sampler", "order", "measured"),
    [
        *[("lms", order, order - 0.05) for order in (1, 2, 3)],
        *[("deis", order, order - 0.03) for order in (1, 2, 3)],
        *[("unipc", order, at) for order, at in ((1, 2.0), (2, 3.5), (3, 2.3))],
        *[("ipndm", order, at) for order, at in ((1, 0.99), (2, 2.01), (3, 2.02))],
    ],
)
def test_order_option(sampler: str, order: int, measured: float) -> None:
    """UniPC's corrector gives one order more than asked. iPNDM's weights are for even steps: order 2 on others."""
    coarse, fine = (errors(sampler, steps, order=order)[1] for steps in (160, 320))
    assert math.log2(coarse / fine) == pytest.approx(measured, abs=0.06)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm_2", 2)])
def test_churn_keeps_the_marginals(sampler: str, order: int) -> None:
    """The noise that churn adds belongs to the level it leads to: with more steps the moments are exact."""
    found = [errors(sampler, steps, s_churn=10.0) for steps in (160, 320)]
    assert all(abs(mean) < 1e-12 for mean, _ in found)
    assert math.log2(found[0][1] / found[1][1]) == pytest.approx(order, abs=0.15)
    assert errors(sampler, 320, s_churn=10.0, s_noise=1.1)[1] > found[1][1] + 0.01


def test_restarts_shrink_errors() -> None:
    """Fresh noise forgets most of what ten Euler-like steps did wrong; see the steps of the interval for the rest."""
    once, thrice = (errors("restart", 20, restarts=((0.1, 2.0, times, 40),))[1] for times in (1, 3))
    assert abs(thrice) < abs(once) < abs(errors("heun", 20)[1])


STOCHASTIC = [name for name in MEASURED if "eta" in SAMPLERS[name].takes or name in ("ancestral", "restart")]


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_drawn_samples_have_the_exact_moments(sampler: str) -> None:
    """Through the public interface, with Philox noise: mean, variance and skewness of 20 000 samples."""
    n, steps, sigmas = 20_000, 12, [*karras_sigmas(12, 0.05, 20.0), 0.0]
    options = {"eta": 0.8} if "eta" in SAMPLERS[sampler].takes else {}

    def of_mean(x, t):  # the process preserves variance
        signal = signal_at(t)
        return MEAN + signal * STD**2 / (signal**2 * STD**2 + 1 - signal**2) * (x - signal * MEAN)

    sampler_ = Sampler(
        of_mean, (1,), sampler=sampler, sigmas=sigmas, diffusion=PROCESS, clip=False, **options
    )
    plan = sampler_._plan
    unit = torch.eye(plan.calls + 2, dtype=torch.float64)
    x = unit[:, 1:2].clone()
    out = run(plan, of_mean, x, clip=False, step_noise=lambda row, x: unit[:, row + 2 : row + 3])[:, 0]
    variance = float(((out[1:] - out[0]) ** 2).sum())
    drawn = sampler_(n, seed=7, progress=False).double()
    assert len(sigmas) == steps + 1
    assert drawn.mean().item() == pytest.approx(float(out[0]), abs=4 * math.sqrt(variance / n))
    assert drawn.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))
    assert abs(((drawn - out[0]) ** 3).mean().item()) < 4 * math.sqrt(15 / n) * variance**1.5


def signal_at(t):
    steps = np.arange(PROCESS.steps)
    log_sigma = 0.5 * np.log(1 / PROCESS.alphas_bar.numpy() - 1)
    return 1 / math.hypot(1, math.exp(np.interp(float(t[0]), steps, log_sigma)))
