"""UniPC: a multistep predictor of any order, corrected by the next model call at no cost (Zhao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers.options import Options
from fastdiff.sampling.samplers.points import Past, points, update


def bh1_rows(levels: Levels, options: Options) -> list[Row]:
    """B(h) = h: see :func:`_rows`."""
    return _rows(levels, options, lambda hh: hh)


def bh2_rows(levels: Levels, options: Options) -> list[Row]:
    """B(h) = exp(h) - 1: see :func:`_rows`."""
    return _rows(levels, options, math.expm1)


def _rows(levels: Levels, options: Options, b: Callable[[float], float]) -> list[Row]:
    """One model call a step. In y = x / signal, with estimates m_i = x_0 of call i, h = log(sigma / sigma'):

        predictor  y_p = (sigma' / sigma) y_c + sum_k P_k m_{i-k}
        corrector  y_c = y_p + C m_{i+1} + sum_k (C_k - P_k) m_{i-k}        from the call at y_p

    Both are linear, so that a row goes from one prediction to the next, and the corrected state is never stored. Order
    2 reads two earlier estimates; order 3 reads three, as their mix. The order rises from 1 in the first steps, and
    falls to 1 in the last one.
    """
    level, steps = points(levels), levels.steps
    position = [-math.log(p.sigma) if p.noise > 0 else math.inf for p in level]
    terms, result = [], []
    corrected, corrections = 0.0, np.zeros(options.order + 1)  # C; C_k - P_k of the step before
    for i in range(steps):
        order = min(options.order, i + 1, steps - i)
        ratio = level[i + 1].sigma / level[i].sigma
        predictor, corrector, new = _weights(position[max(i - order + 1, 0) : i + 2], b)
        m = np.zeros(options.order + 1)  # of m_i, m_{i-1}, ...
        m[: len(predictor)] = predictor
        m += ratio * np.append(corrected, corrections[:-1])
        terms.append(m[1:].tolist())
        result.append(update(level[i], level[i + 1], *_past(m[1:]), y=ratio, x0=m[0]))
        corrected, corrections = new, np.zeros(options.order + 1)
        corrections[: len(predictor)] = corrector - predictor
    if options.order < 3:
        return result
    return [
        replace(row, keep=(0.0, 1.0), mix=tuple(t)) for row, t in zip(result, terms[1:], strict=False)
    ] + [result[-1]]


def _weights(position: list[float], b: Callable[[float], float]) -> tuple[np.ndarray, np.ndarray, float]:
    """Predictor's and corrector's weights of m_i, m_{i-1}, ..., and the corrector's weight of m_{i+1}.

    ``position``: -log sigma of as many levels as the order, and of the one the step leads to.
    """
    *past, end = position
    order, h = len(past), end - past[-1]
    base = np.zeros(order)
    if math.isinf(h):
        base[0] = 1.0  # y' = x_0
        return base, base, 0.0
    hh = -h
    base[0] = -math.expm1(hh)
    r = np.array([(p - past[-1]) / h for p in past[-2::-1]] + [1.0])
    phi, moments = math.expm1(hh) / hh - 1, []
    for i in range(1, order + 1):
        moments.append(phi * math.factorial(i) / b(hh))
        phi = phi / hh - 1 / math.factorial(i + 1)
    powers = np.vander(r, order, increasing=True).T
    # With one unknown the solution is taken to be 1/2, its limit for small h, as published.
    explicit = np.full(order - 1, 0.5)
    if order > 2:
        explicit = np.linalg.solve(powers[:-1, :-1], moments[:-1])
    implicit = np.array([0.5]) if order == 1 else np.linalg.solve(powers, moments)

    def of_estimates(rho: np.ndarray) -> np.ndarray:
        """Base minus B sum_k rho_k (m_{i-k} - m_i) / r_k."""
        change = b(hh) * rho / r[: len(rho)]
        weights = base.copy()
        weights[0] += change.sum()
        weights[1 : 1 + len(rho)] -= change[: order - 1]
        return weights

    return of_estimates(explicit), of_estimates(implicit), -b(hh) * implicit[-1]


def _past(terms: np.ndarray) -> list[Past]:
    """The terms in earlier estimates of x_0: two as they are, three as a mix."""
    if len(terms) > 2:
        return [Past(History.MIX, 1.0)] if terms.any() else []
    return [Past(k, float(t)) for k, t in zip((History.PREVIOUS_X0, History.EARLIER_X0), terms, strict=False)]
