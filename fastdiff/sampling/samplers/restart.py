"""Restart sampling: Heun's steps, and intervals that are gone through again from fresh noise (Xu et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.errors import FastdiffError
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row
from fastdiff.sampling.samplers.heun import step
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import Point, points

# (sigma_min, sigma_max, times, steps): the interval whose errors people see most.
DEFAULT = ((0.1, 2.0, 1, 9),)


def rows(levels: Levels, options: Options) -> list[Row]:
    """Where the levels come to sigma_min of an interval (the nearest level), ``times`` times:

        y <- y + s_noise sqrt(sigma_max^2 - sigma_min^2) z,    then ``steps`` of Heun's steps back, on a Karras grid

    The noise is drawn by the row before. Errors that the ODE steps have collected shrink with the noise.

    Raises:
        FastdiffError: an interval above all levels.
    """
    level = points(levels)
    noisy = [p for p in level[1:] if p.noise > 0]
    restarts: dict[int, list[tuple[float, int]]] = {}
    for low, high, times, count in options.restarts if noisy else ():
        if high > level[0].sigma * (1 + 1e-9):
            raise FastdiffError(
                f"the restart from sigma {high:g} lies above the first level of the run, {level[0].sigma:g}"
            )
        nearest = 1 + int(np.argmin([abs(math.log(p.sigma / low)) for p in noisy]))
        restarts.setdefault(nearest, []).extend([(high, count)] * times)
    result: list[Row] = []
    for i, (now, end) in enumerate(zip(level, level[1:], strict=False), 1):
        result += step(now, end, end)
        for high, count in restarts.get(i, []):
            result += _restart(levels, result, end, high, count, options.s_noise)
    return result


def _restart(
    levels: Levels, before: list[Row], low: Point, high: float, count: int, s_noise: float
) -> list[Row]:
    """The rows from ``high`` back to ``low``; the last row of ``before`` gets the noise and the level it leads to."""
    if high <= low.sigma:
        raise FastdiffError(
            f"a restart must go up: from sigma {low.sigma:g}, where the levels are, to {high:g}"
        )
    sigmas = karras_sigmas(count + 1, low.sigma, high)
    way = [*points(levels.at(sigmas[:-1])), low]
    ratio = way[0].signal / low.signal
    std = way[0].signal * s_noise * math.sqrt(high**2 - low.sigma**2)
    last = before[-1]
    before[-1] = replace(last, x=last.x * ratio, x0=last.x0 * ratio, h1=last.h1 * ratio, std=std)
    return [row for now, end in zip(way, way[1:], strict=False) for row in step(now, end, end)]
