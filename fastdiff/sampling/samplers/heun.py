"""Heun's second-order steps on the probability-flow ODE (EDM, Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row
from fastdiff.sampling.samplers import euler


def rows(levels: Levels) -> list[Row]:
    """Each step is an Euler prediction and a correction, two model calls; a step to sigma = 0 only the first.

    With y = x / signal, d = (y - x_0) / sigma and the prediction y_p = y + (sigma' - sigma) d:

        d' = (y_p - x_0') / sigma'                                 x_0' from the call at y_p
        y' = y + (sigma' - sigma) (d + d') / 2
           = y / 2 + (1/2 + r) y_p - r x_0'                        r = (sigma' - sigma) / (2 sigma')

    The correcting row has y_p as its x and y as its h_1.
    """
    signal, sigma = levels.signal, levels.sigmas
    result = []
    for i, prediction in enumerate(euler.rows(levels)):
        result.append(prediction)
        if sigma[i + 1] > 0:
            r = (sigma[i + 1] - sigma[i]) / (2 * sigma[i + 1])
            correction = Row(
                time=levels.times[i + 1],
                signal=signal[i + 1],
                noise=levels.noise[i + 1],
                x=0.5 + r,
                x0=-r * signal[i + 1],
                h1=0.5 * signal[i + 1] / signal[i],
                history=History.PREVIOUS_X,
            )
            result.append(correction)
    return result
