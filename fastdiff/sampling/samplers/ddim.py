"""DDIM (Song, Meng & Ermon 2021), with any amount of noise, and its reverse."""

from __future__ import annotations

import numpy as np

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row


def rows(levels: Levels, eta: float = 0.0) -> list[Row]:
    """From level t to the next level s (DDIM equations 12 and 16):

        eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)          from the clipped x_0
        std = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)
        x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s - std^2) eps + std z

    eta = 0 is deterministic; eta = 1 has the variance of ancestral ``fixed_small``. The levels may rise: with
    eta = 0 the same formula then encodes an image into the x_T that decodes to it.
    """
    now, after = levels.alphas_bar[:-1], levels.alphas_bar[1:]
    std = np.zeros_like(now)
    if eta:
        std = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
    x = np.sqrt((1 - after - std**2) / (1 - now))
    x0 = np.sqrt(after) - x * np.sqrt(now)
    return [
        Row(time=levels.times[i], alpha_bar=now[i], x=x[i], x0=x0[i], std=std[i]) for i in range(levels.steps)
    ]
