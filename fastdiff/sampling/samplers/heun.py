"""Heun's second-order steps on the probability-flow ODE (EDM, Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.churn import churned
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import Past, Point, euler_step, has_one_stage, points, update


def rows(levels: Levels, options: Options) -> list[Row]:
    """Each step is an Euler prediction and a correction, two model calls; a step to sigma = 0 only the first.

    With churn, each step begins at sigma_hat.
    """
    starts, ends = churned(levels, options), points(levels)[1:]
    return [
        row
        for i, end in enumerate(ends)
        for row in step(starts[i][0], end, starts[i + 1][0], starts[i + 1][1])
    ]


def step(now: Point, end: Point, after: Point, std: float = 0.0) -> list[Row]:
    """The rows of one step from ``now`` to ``end``, whose last one adds noise on the way to ``after``.

    With y = x / signal, d = (y - x_0) / sigma and the prediction y_p = y + (sigma' - sigma) d:

        d' = (y_p - x_0') / sigma'                                 x_0' from the call at y_p
        y' = y + (sigma' - sigma) (d + d') / 2
           = y / 2 + (1/2 + r) y_p - r x_0'                        r = (sigma' - sigma) / (2 sigma')

    The correcting row has y_p as its x and y as its h_1.
    """
    if has_one_stage(now, end.sigma):
        return [euler_step(now, end.sigma, after, std)]
    r = (end.sigma - now.sigma) / (2 * end.sigma)
    past = Past(History.PREVIOUS_X, 0.5, now)
    return [euler_step(now, end.sigma, end), update(end, after, past, y=0.5 + r, x0=-r, std=std)]
