"""DPM-Solver++ (stochastic): single steps of the diffusion SDE with a stage in the middle (k-diffusion's dpmpp_sde)."""

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
    """Two model calls a step, one in a step to sigma = 0. With the middle sigma_m = sqrt(sigma sigma'):

        y_m = (down_m / sigma) y + (1 - down_m / sigma) x_0 + up_m w_m
        y'  = (down / sigma) y + (1 - down / sigma) x_0_m + up w

    down and up are those of :func:`ancestral_split` from sigma to sigma_m and to sigma'. Both noises are increments
    of one Brownian path over sigma: with independent z_m before and z after the middle,

        w_m = z_m,    w = sqrt(f) z_m + sqrt(1 - f) z,    f = (sigma - sigma_m) / (sigma - sigma')

    z_m is not stored: the second row finds it in y_m, from which it takes away what the first row made of y and x_0.
    """
    level, result = points(levels), []
    for now, after in zip(level, level[1:], strict=False):
        if has_one_stage(now, after.sigma):
            down, up = ancestral_split(now.sigma, after.sigma, options.eta)
            result.append(euler_step(now, down, after, up * options.s_noise))
            continue
        middle = point_at(levels, math.sqrt(now.sigma * after.sigma))
        down_m, up_m = ancestral_split(now.sigma, middle.sigma, options.eta)
        down, up = ancestral_split(now.sigma, after.sigma, options.eta)
        shared = (now.sigma - middle.sigma) / (now.sigma - after.sigma)
        again = math.sqrt(shared) * up / up_m if up_m else 0.0  # of up_m z_m, the noise in y_m
        ratio_m, ratio = down_m / now.sigma, down / now.sigma
        result.append(euler_step(now, down_m, middle, up_m * options.s_noise))
        result.append(
            update(
                middle,
                after,
                Past(History.PREVIOUS_X, ratio - again * ratio_m, now),
                Past(History.PREVIOUS_X0, -again * (1 - ratio_m)),
                y=again,
                x0=1 - ratio,
                std=up * math.sqrt(1 - shared) * options.s_noise,
            )
        )
    return result
