"""Euler steps on the probability-flow ODE (EDM, Karras et al. 2022, algorithm 1 without its correction)."""

from __future__ import annotations

import numpy as np

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row


def rows(levels: Levels) -> list[Row]:
    """With sigma = sqrt(1 - abar) / sqrt(abar) and y = x / sqrt(abar), dy/dsigma = (y - x_0) / sigma:

        y' = y + (sigma' - sigma) (y - x_0) / sigma = (sigma' / sigma) y + (1 - sigma' / sigma) x_0

    In x this is exactly DDIM with eta = 0; the two samplers differ in the levels they walk by default.
    """
    scale, sigma = np.sqrt(levels.alphas_bar), levels.sigmas
    ratio = sigma[1:] / sigma[:-1]
    return [
        Row(
            time=levels.times[i],
            alpha_bar=levels.alphas_bar[i],
            x=ratio[i] * scale[i + 1] / scale[i],
            x0=(1 - ratio[i]) * scale[i + 1],
        )
        for i in range(levels.steps)
    ]
