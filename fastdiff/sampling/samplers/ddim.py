"""DDIM (Song, Meng & Ermon 2021), with any amount of noise, and its reverse."""

from __future__ import annotations

import numpy as np

from fastdiff.diffusion.gaussian import posterior
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row


def rows(levels: Levels, eta: float = 0.0) -> list[Row]:
    """From level t to the next level s (DDIM equations 12 and 16):

        eps = (x_t - signal_t x_0) / noise_t                       from the clipped x_0
        std = eta sqrt(variance of q(x_s | x_t, x_0))
        x_s = signal_s x_0 + sqrt(noise_s^2 - std^2) eps + std z

    eta = 0 is deterministic; eta = 1 has the variance of ancestral ``fixed_small``. The levels may rise: with
    eta = 0 the same formula then encodes an image into the x_T that decodes to it.
    """
    signal, noise, signal_after, noise_after = (
        levels.signal[:-1],
        levels.noise[:-1],
        levels.signal[1:],
        levels.noise[1:],
    )
    std = np.zeros_like(noise)
    if eta:
        std = eta * np.sqrt(posterior(signal, noise, signal_after, noise_after).variance)
    x = np.sqrt(noise_after**2 - std**2) / noise
    x0 = signal_after - x * signal
    return [
        Row(time=levels.times[i], signal=signal[i], noise=noise[i], x=x[i], x0=x0[i], std=std[i])
        for i in range(levels.steps)
    ]
