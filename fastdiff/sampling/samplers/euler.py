"""Euler steps on the probability-flow ODE (EDM, Karras et al. 2022, algorithm 1 without its correction)."""

from __future__ import annotations

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row


def rows(levels: Levels) -> list[Row]:
    """With sigma = noise / signal and y = x / signal, dy/dsigma = (y - x_0) / sigma:

        y' = y + (sigma' - sigma) (y - x_0) / sigma = (sigma' / sigma) y + (1 - sigma' / sigma) x_0

    In x this is exactly DDIM with eta = 0; the two samplers differ in the levels they walk by default.
    """
    signal, noise, sigma = levels.signal, levels.noise, levels.sigmas
    return [
        Row(
            time=levels.times[i],
            signal=signal[i],
            noise=noise[i],
            x=noise[i + 1] / noise[i],
            x0=(1 - sigma[i + 1] / sigma[i]) * signal[i + 1],
        )
        for i in range(levels.steps)
    ]
