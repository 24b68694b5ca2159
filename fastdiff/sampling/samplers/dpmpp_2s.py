"""DPM-Solver++ (2S): second-order single steps in log-SNR (Lu et al. 2022, algorithm 1), ancestral if eta > 0."""

from __future__ import annotations

import math

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import (
    Past,
    ancestral_split,
    euler_step,
    has_one_stage,
    point_at,
    points,
    update,
)


def rows(levels: Levels, options: Options) -> list[Row]:
    """Two model calls a step. From y at sigma to sigma_down, through y_m at sigma_m = sqrt(sigma sigma_down):

        y_m = (sigma_m / sigma) y + (1 - sigma_m / sigma) x_0
        y'  = (sigma_down / sigma) y + (1 - sigma_down / sigma) x_0_m + sigma_up z

    The exponential integrator's exp(-h) is the ratio of sigmas. A step to sigma = 0 has one call, y' = x_0.
    """
    level, result = points(levels), []
    for now, after in zip(level, level[1:], strict=False):
        down, up = ancestral_split(now.sigma, after.sigma, options.eta)
        std = up * options.s_noise
        if has_one_stage(now, down):
            result.append(euler_step(now, down, after, std))
            continue
        middle, ratio = point_at(levels, math.sqrt(now.sigma * down)), down / now.sigma
        past = Past(History.PREVIOUS_X, ratio, now)
        result.append(euler_step(now, middle.sigma, middle))
        result.append(update(middle, after, past, y=0.0, x0=1 - ratio, std=std))
    return result
