"""DPM-Solver++ (2M) and (3M) on the diffusion SDE: one model call a step (Lu et al. 2022; k-diffusion's 2m and 3m SDE).

eta scales the noise: 0 is the ODE, 1 the reverse SDE.
"""

from __future__ import annotations

import math

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import Past, points, update


def midpoint_rows(levels: Levels, options: Options) -> list[Row]:
    """2M, the derivative of x_0 weighted by the midpoint rule, (1 - exp(-k)) / 2: see :func:`_rows`."""
    return _rows(levels, options, 2, lambda k: -math.expm1(-k) / 2)


def heun_rows(levels: Levels, options: Options) -> list[Row]:
    """2M, the derivative of x_0 weighted exactly, 1 - (1 - exp(-k)) / k: see :func:`_rows`."""
    return _rows(levels, options, 2, _phi_2)


def three_rows(levels: Levels, options: Options) -> list[Row]:
    """3M, with a quadratic through three estimates of x_0: see :func:`_rows`."""
    return _rows(levels, options, 3, _phi_2)


def _phi_2(k: float) -> float:
    return math.expm1(-k) / k + 1


def _rows(levels: Levels, options: Options, most: int, weight) -> list[Row]:
    """With h = log(sigma / sigma'), k = (1 + eta) h, and r_j the earlier steps' h over this one's:

        y' = exp(-k) y + (1 - exp(-k)) x_0 + w(k) D_1 - (w(k) / k - 1/2) D_2 + sigma' sqrt(1 - exp(-2 eta h)) z

    D_1 and D_2 are the slopes of x_0 in units of h: the divided difference of two estimates for 2M, whose D_2 is 0; the
    derivatives of the parabola through three for 3M. The first steps use as many as there are. To sigma = 0: y' = x_0.
    """
    level = points(levels)
    h = [
        math.log(a.sigma / b.sigma) if b.noise > 0 else math.inf
        for a, b in zip(level, level[1:], strict=False)
    ]
    result = []
    for i, (now, after) in enumerate(zip(level, level[1:], strict=False)):
        if after.noise <= 0:
            result.append(update(now, after, y=0.0, x0=1.0))
            continue
        k = (1 + options.eta) * h[i]
        now_0, before, earlier = _slopes(weight(k), k, [past / h[i] for past in h[max(i - most + 1, 0) : i]])
        result.append(
            update(
                now,
                after,
                Past(History.PREVIOUS_X0, before),
                Past(History.EARLIER_X0, earlier),
                y=math.exp(-k),
                x0=-math.expm1(-k) + now_0,
                std=after.sigma * math.sqrt(-math.expm1(-2 * options.eta * h[i])) * options.s_noise,
            )
        )
    return result


def _slopes(weight: float, k: float, ratios: list[float]) -> tuple[float, float, float]:
    """What w D_1 - (w / k - 1/2) D_2 takes of this x_0, of the one before and of the one before that.

    ``ratios``: h of the earlier steps over this one's, the oldest first; as many as may be used.
    """
    if not ratios:
        return 0.0, 0.0, 0.0
    r = ratios[-1]
    if len(ratios) == 1:
        return weight / r, -weight / r, 0.0
    older = ratios[-2]
    # D_1 = a + (a - b) r / (r + older), D_2 = (a - b) / (r + older), with the divided differences a and b.
    bend = (weight * r - (weight / k - 0.5)) / (r + older)
    a, b = weight + bend, -bend
    return a / r, -a / r + b / older, -b / older
