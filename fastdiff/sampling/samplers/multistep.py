"""Linear multistep methods for dy/dsigma = d = (y - x_0) / sigma: LMS, DEIS, iPNDM and PNDM.

They differ in the weights of y' = y + w_0 d + w_1 d_1 + w_2 d_2 + w_3 d_3, where d_j is the d of j steps ago.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.polynomial import Polynomial

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.heun import step as heun_step
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import Past, Point, points, update

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def lms_rows(levels: Levels, options: Options) -> list[Row]:
    """The polynomial in sigma through the last d's, integrated from sigma to sigma' (k-diffusion's ``lms``)."""
    sigma, weights = levels.sigmas, []
    for i in range(levels.steps):
        basis = _lagrange(sigma[i::-1][: options.order] - sigma[i])
        weights.append([p.integ()(sigma[i + 1] - sigma[i]) for p in basis])
    return _rows(points(levels), weights)


def deis_rows(levels: Levels, options: Options) -> list[Row]:
    """The polynomial in u = log sigma through the last d's, integrated over sigma: DEIS, tAB (Zhang & Chen 2023).

    The integral of P(u) exp(u) is Q(u) exp(u) with Q = P - P' + P'' - ... The step to sigma = 0 is first order.
    """
    sigma, weights = levels.sigmas, []
    for i in range(levels.steps):
        order = options.order if sigma[i + 1] > 0 else 1
        ratio = sigma[i + 1] / sigma[i]
        basis = _lagrange(np.log(sigma[i::-1][:order] / sigma[i]))
        signed = [sum((p.deriv(k) * (-1) ** k for k in range(1, order)), p) for p in basis]
        end = np.log(ratio) if ratio else 0.0
        weights.append([sigma[i] * (ratio * q(end) - q(0.0)) for q in signed])
    return _rows(points(levels), weights)


def ipndm_rows(levels: Levels, options: Options) -> list[Row]:
    """Adams-Bashforth's weights for even steps, whatever the levels are (iPNDM, Zhang & Chen 2023)."""
    return _rows(points(levels), _even_weights(levels, options))


def pndm_rows(levels: Levels, options: Options) -> list[Row]:
    """PLMS: a first step of Heun's, then iPNDM's, so that there is one model call more than steps.

    Pseudo linear multistep (Liu et al. 2022) as Stable Diffusion's configuration has it (``skip_prk_steps``).
    """
    level, weights = points(levels), _even_weights(levels, options)[1:]
    first = heun_step(level[0], level[1], level[1])
    if weights:
        first[0] = _keeping(first[0], level[0], weights[0])
    return [*first, *_rows(level[1:], weights, mixes=True)]


def _even_weights(levels: Levels, options: Options) -> list[list[float]]:
    step = np.diff(levels.sigmas)
    return [[step[i] * w for w in ADAMS_BASHFORTH[min(i, options.order - 1)]] for i in range(levels.steps)]


def _lagrange(nodes: np.ndarray) -> list[Polynomial]:
    """For each node the polynomial that is 1 there and 0 at the others."""
    return [
        math.prod((Polynomial([-b, 1.0]) / (a - b) for b in nodes if b != a), start=Polynomial([1.0]))
        for a in nodes
    ]


def _rows(level: Sequence[Point], weights: Sequence[Sequence[float]], mixes: bool = False) -> list[Row]:
    """With d_1 alone, h_1 and h_2 are the state and the estimate that it is made of; with more, h_1 is their mix."""
    mixes = mixes or any(len(w) > 2 for w in weights)
    result = []
    for i, w in enumerate(weights):
        now, past = level[i], ()
        if len(w) > 1 and mixes:
            past = (Past(History.MIX, 1.0),)
        elif len(w) > 1:
            each = w[1] / level[i - 1].sigma
            past = Past(History.PREVIOUS_X, each, level[i - 1]), Past(History.PREVIOUS_X0, -each)
        each = w[0] / now.sigma
        row = update(now, level[i + 1], *past, y=1 + each, x0=-each)
        result.append(_keeping(row, now, weights[i + 1]) if mixes and i + 1 < len(weights) else row)
    return result


def _keeping(row: Row, now: Point, following: Sequence[float]) -> Row:
    """The row, which also keeps its d and mixes the d's for the row that is to have the weights ``following``."""
    first, second, third = (*following[1:], 0.0, 0.0, 0.0)[:3]
    return replace(row, keep=(1 / now.noise, -1 / now.sigma), mix=(first, second, third))
