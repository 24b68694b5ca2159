"""Euler steps on the probability-flow ODE (EDM, Karras et al. 2022, algorithm 2 without its correction)."""

from __future__ import annotations

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row
from fastdiff.sampling.samplers.churn import churned
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import ancestral_split, euler_step, points


def rows(levels: Levels, options: Options) -> list[Row]:
    """With sigma = noise / signal and y = x / signal, dy/dsigma = (y - x_0) / sigma:

        y' = y + (sigma' - sigma) (y - x_0) / sigma = (sigma' / sigma) y + (1 - sigma' / sigma) x_0

    In x this is exactly DDIM with eta = 0; the two samplers differ in the levels they walk by default. With churn,
    each step begins at sigma_hat.
    """
    starts, sigma = churned(levels, options), levels.sigmas
    return [euler_step(starts[i][0], sigma[i + 1], *starts[i + 1]) for i in range(levels.steps)]


def ancestral_rows(levels: Levels, options: Options) -> list[Row]:
    """An Euler step down to sigma_down, then noise of deviation sigma_up: k-diffusion's ``euler_ancestral``."""
    level = points(levels)
    result = []
    for now, after in zip(level, level[1:], strict=False):
        down, up = ancestral_split(now.sigma, after.sigma, options.eta)
        result.append(euler_step(now, down, after, up * options.s_noise))
    return result
