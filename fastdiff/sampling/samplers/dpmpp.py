"""DPM-Solver++ (2M): second-order multistep on the ODE in log-SNR (Lu et al. 2022, algorithm 2)."""

from __future__ import annotations

import numpy as np

from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import History, Row

FEW_STEPS = 15  # below this the last step is first order, for stability (``lower_order_final``)


def rows(levels: Levels) -> list[Row]:
    """With lambda = log(signal / noise), h = lambda' - lambda and r = h_previous / h:

        D  = (1 + 1/(2r)) x_0 - 1/(2r) x_0_previous
        x' = noise' / noise x - signal' (exp(-h) - 1) D

    One model call a step. D = x_0 (first order) in the first step, which has no past, in the last of fewer
    than 15 steps, and in a step to the clean image, where h is infinite and x' = x_0.
    """
    signal, noise = levels.signal, levels.noise
    steps = levels.steps
    h = np.full(steps, np.inf)
    noisy = noise[1:] > 0
    log_snr = np.log(signal[noise > 0] / noise[noise > 0])
    h[noisy] = np.diff(log_snr)
    result = []
    for i in range(steps):
        whole = -signal[i + 1] * np.expm1(-h[i])
        is_last = i == steps - 1
        first_order = i == 0 or not noisy[i] or (is_last and steps < FEW_STEPS)
        past = 0.0 if first_order else h[i] / (2 * h[i - 1])  # 1/(2r)
        result.append(
            Row(
                time=levels.times[i],
                signal=signal[i],
                noise=noise[i],
                x=noise[i + 1] / noise[i],
                x0=whole * (1 + past),
                h1=-whole * past,
                history=History.NONE if first_order else History.PREVIOUS_X0,
            )
        )
    return result
