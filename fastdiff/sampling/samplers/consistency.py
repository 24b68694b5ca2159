"""Samplers for models that answer with the image in one call: consistency models and LCM."""

from __future__ import annotations

import math

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import points, update


def rows(levels: Levels, options: Options) -> list[Row]:
    """One call a step, y' = x_0 + sqrt(sigma'^2 - sigma_min^2) z; the last one y' = x_0.

    Song et al. 2023, algorithm 1. sigma_min is the level at which the model returns its input.
    """
    return _rows(levels, options, options.sigma_min)


def lcm_rows(levels: Levels, options: Options) -> list[Row]:
    """One call a step, y' = x_0 + sigma' z; the last one y' = x_0 (Luo et al. 2023, algorithm 3)."""
    return _rows(levels, options, 0.0)


def _rows(levels: Levels, options: Options, sigma_min: float) -> list[Row]:
    level = points(levels)
    return [
        update(
            now,
            after,
            y=0.0,
            x0=1.0,
            std=options.s_noise * math.sqrt(max(after.sigma**2 - sigma_min**2, 0.0)),
        )
        for now, after in zip(level, level[1:], strict=False)
    ]
