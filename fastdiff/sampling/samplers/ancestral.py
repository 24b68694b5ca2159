"""Ancestral sampling: the reverse Markov chain itself (DDPM, Ho et al. 2020, algorithm 2)."""

from __future__ import annotations

import numpy as np

from fastdiff.diffusion.config import Variance
from fastdiff.diffusion.gaussian import clipped_log, posterior
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row


def rows(levels: Levels, variance: Variance) -> list[Row]:
    """From level t to the next level s, with signal a, noise b and beta = b_t^2 - (a_t / a_s)^2 b_s^2:

        x_s = beta a_s / b_t^2 x_0 + (a_t / a_s) b_s^2 / b_t^2 x_t + std z

    beta is the variance of q(x_t | x_s): 1 - abar_t / abar_s in a process that preserves variance.

    fixed_small    std^2 = btilde = beta b_s^2 / b_t^2, exact for data that are one point
    fixed_large    std^2 = beta, exact for standard normal data
    learned        log std^2 = v, the model's variance channels
    learned_range  log std^2 = f log beta + (1 - f) log btilde, f = (v + 1) / 2 (IDDPM equation 15)

    The step to the clean image adds no noise.
    """
    signal, noise = levels.signal, levels.noise
    c_0, c_t, small, beta = posterior(signal[:-1], noise[:-1], signal[1:], noise[1:])
    noisy = noise[1:] > 0
    fixed = np.sqrt(beta if variance == "fixed_large" else small) * noisy
    learned = variance in ("learned", "learned_range")
    # The last posterior variance is 0, and 0 times its log would be NaN, so it is clipped as in the process's tables.
    log_small = np.log(small) if noisy.all() else clipped_log(small[::-1], beta[::-1])[::-1]
    return [
        Row(
            time=levels.times[i],
            signal=signal[i],
            noise=noise[i],
            x=c_t[i],
            x0=c_0[i],
            std=0.0 if learned else fixed[i],
            log_min=log_small[i] if learned else 0.0,
            log_max=np.log(beta[i]) if learned else 0.0,
            noise_on=learned and bool(noisy[i]),
        )
        for i in range(levels.steps)
    ]
