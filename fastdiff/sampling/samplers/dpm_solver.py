"""DPM-Solver of orders 1, 2 and 3 in one step (Lu et al. 2022), and the fast schedule of orders, ``dpm_fast``."""

from __future__ import annotations

import math

import numpy as np

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import (
    Past,
    Point,
    ancestral_split,
    euler_step,
    point_at,
    points,
    update,
)


def rows(levels: Levels, options: Options) -> list[Row]:
    """As many model calls as there are steps: order 3 where three calls are left, and 2 and 1 for the rest.

    The steps are even in log sigma between the first and the last noisy level, whatever the levels between; the last
    call takes the last level to the clean image. eta > 0 steps down to sigma_down and adds noise.
    """
    level = points(levels)
    first, last, clean = level[0], level[-2], level[-1]
    calls = levels.steps - 1
    result: list[Row] = []
    if calls:
        result += noisy_rows(levels, first, last, calls, options)
    return [*result, euler_step(last, clean.sigma, clean)]


def noisy_rows(levels: Levels, first: Point, last: Point, calls: int, options: Options) -> list[Row]:
    """The steps between two noisy levels, with ``calls`` model calls."""
    count = calls // 3 + 1
    orders = [3] * (count - 1) + [calls % 3] if calls % 3 else [3] * (count - 2) + [2, 1]
    way = [first, *points(levels.at(np.geomspace(first.sigma, last.sigma, count + 1)[1:-1])), last]
    result: list[Row] = []
    for order, now, after in zip(orders, way[:-1], way[1:], strict=True):
        down = max(ancestral_split(now.sigma, after.sigma, options.eta)[0], last.sigma)
        std = options.s_noise * math.sqrt(max(after.sigma**2 - down**2, 0.0))
        result += solver_rows(levels, now, down, after, order, std=std)
    return result


def solver_rows(
    levels: Levels,
    now: Point,
    end: float,
    after: Point,
    order: int,
    r: tuple[float, float] = (1 / 3, 2 / 3),
    std: float = 0.0,
) -> list[Row]:
    """One step from sigma to sigma' = ``end`` of order 1, 2 or 3, and as many model calls; the last row adds noise.

    With h = log(sigma / sigma'), eps = (y - x_0) / sigma, and stages at sigma_j = sigma exp(-r_j h):

        1    y'  = y - (sigma - sigma') eps
        2    u   = y - (sigma - sigma_1) eps
             y'  = y - (sigma - sigma') (eps + (eps_1 - eps) / (2 r_1))                           r_1 = 1/2
        3    u_2 = y - (sigma - sigma_2) eps - (r_2 / r_1) g(r_2 h, sigma_2) (eps_1 - eps)
             y'  = y - (sigma - sigma') eps - g(h, sigma') (eps_2 - eps) / r_2

    with g(h, s) = s ((exp(h) - 1) / h - 1). Equations 3.3, 3.5 and 3.7 in y.
    """
    h = math.log(now.sigma / end)

    def middle(part: float) -> Point:
        return point_at(levels, now.sigma * math.exp(-part * h))

    def g(part: float, to: float) -> float:
        return to * (math.expm1(part * h) / (part * h) - 1)

    if order == 1:
        return [euler_step(now, end, after, std)]
    if order == 2:
        first = middle(r_1 := 1 / 2)
        return [
            euler_step(now, first.sigma, first),
            stage(now, first, end, after, (now.sigma - end) / (2 * r_1), std=std),
        ]
    first, second = middle(r[0]), middle(r[1])
    return [
        euler_step(now, first.sigma, first),
        stage(now, first, second.sigma, second, r[1] / r[0] * g(r[1], second.sigma)),
        stage(now, second, end, after, g(1.0, end) / r[1], earlier=True, std=std),
    ]


def stage(
    now: Point, at: Point, to: float, then: Point, slope: float, earlier: bool = False, std: float = 0.0
) -> Row:
    """y - (sigma - to) eps - slope (eps_at - eps), with y and eps at ``now``, one call ago or, if earlier, two."""
    base = (slope - (now.sigma - to)) / now.sigma
    state, estimate = (
        (History.EARLIER_X, History.EARLIER_X0) if earlier else (History.PREVIOUS_X, History.PREVIOUS_X0)
    )
    own = -slope / at.sigma
    return update(at, then, Past(state, 1 + base, now), Past(estimate, -base), y=own, x0=-own, std=std)
