"""Churn: noise added before each step of a deterministic sampler (EDM, Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

import math

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import Point, point_at, points

MOST = math.sqrt(2) - 1  # of gamma: more noise in one step would outweigh what the image has


def churned(levels: Levels, options: Options) -> list[tuple[Point, float]]:
    """For each level: where the step from it begins, and the deviation of the noise in y that leads there.

        gamma = min(s_churn / steps, sqrt(2) - 1) if s_tmin <= sigma <= s_tmax, else 0
        sigma_hat = (1 + gamma) sigma,    y_hat = y + s_noise sqrt(sigma_hat^2 - sigma^2) z

    The noise of a step is drawn by the row before it, whose update it ends. That of the first step is part of x_T,
    which is taken to be a state at sigma_hat.
    """
    gamma = min(options.s_churn / levels.steps, MOST)
    result = []
    for point in points(levels):
        if gamma and point.noise > 0 and options.s_tmin <= point.sigma <= options.s_tmax:
            hat = point_at(levels, (1 + gamma) * point.sigma)
            result.append((hat, options.s_noise * math.sqrt(hat.sigma**2 - point.sigma**2)))
        else:
            result.append((point, 0.0))
    return result
