"""Second-order steps by the midpoint in log sigma: k-diffusion's ``dpm_2`` and ``dpm_2_ancestral``.

DPM-Solver-2 (Lu et al. 2022, algorithm 1) with the midpoint rule, and the churn of EDM's algorithm 2.
"""

from __future__ import annotations

import math

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.churn import churned
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import (
    Past,
    Point,
    ancestral_split,
    euler_step,
    has_one_stage,
    point_at,
    points,
    update,
)


def rows(levels: Levels, options: Options) -> list[Row]:
    """Two model calls a step, one in a step to sigma = 0; with churn, each step begins at sigma_hat."""
    starts, sigma = churned(levels, options), levels.sigmas
    return [
        row for i in range(levels.steps) for row in _step(levels, starts[i][0], sigma[i + 1], *starts[i + 1])
    ]


def ancestral_rows(levels: Levels, options: Options) -> list[Row]:
    """A step down to sigma_down, then noise of deviation sigma_up."""
    level, result = points(levels), []
    for now, after in zip(level, level[1:], strict=False):
        down, up = ancestral_split(now.sigma, after.sigma, options.eta)
        result += _step(levels, now, down, after, up * options.s_noise)
    return result


def _step(levels: Levels, now: Point, end: float, after: Point, std: float) -> list[Row]:
    """From y at sigma to sigma' = ``end`` through y_m at sigma_m = sqrt(sigma sigma'):

    y_m = y + (sigma_m - sigma) (y - x_0) / sigma
    y'  = y + (sigma' - sigma) (y_m - x_0_m) / sigma_m
    """
    if has_one_stage(now, end):
        return [euler_step(now, end, after, std)]
    middle = point_at(levels, math.sqrt(now.sigma * end))
    r = (end - now.sigma) / middle.sigma
    past = Past(History.PREVIOUS_X, 1.0, now)
    return [euler_step(now, middle.sigma, middle), update(middle, after, past, y=r, x0=-r, std=std)]
