"""Noise schedules: betas of T steps, Karras sigmas, and the subset of the T steps that a shorter run visits.

Everything is float64 NumPy on the host; nothing is differentiated or sent to a device.
"""

from __future__ import annotations

import math

import numpy as np

from fastdiff.diffusion.config import Schedule
from fastdiff.errors import FastdiffError

MAX_BETA = 0.999  # cosine: keeps the last step from being singular (IDDPM, section 3.2)


def betas(schedule: Schedule, steps: int) -> np.ndarray:
    """The variances beta_t of q(x_t | x_{t-1}), [T] float64.

    ============== ============================================================ ==========================
    linear         from 1e-4 to 0.02                                            DDPM (Ho et al. 2020)
    scaled_linear  squares of values from sqrt(0.00085) to sqrt(0.012)          Stable Diffusion
    sigmoid        1e-4 + (0.02 - 1e-4) sigmoid(u), u from -6 to 6              GeoDiff (Xu et al. 2022)
    cosine         1 - f(t+1)/f(t), f(t) = cos^2(pi/2 (t/T + .008) / 1.008)     IDDPM (Nichol, Dhariwal 2021)
    ============== ============================================================ ==========================

    The first three are stated for T = 1000 and multiplied by 1000/T, as in ADM, so that x_T holds the same
    amount of noise for any T; the cosine schedule, clipped at 0.999, needs no such factor.

    Raises:
        FastdiffError: an unknown schedule, or so few steps that a beta would reach 1.
    """
    scale = 1000 / steps
    if schedule == "linear":
        result = np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
    elif schedule == "scaled_linear":
        result = scale * np.linspace(math.sqrt(0.00085), math.sqrt(0.012), steps, dtype=np.float64) ** 2
    elif schedule == "sigmoid":
        ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, steps, dtype=np.float64)))
        result = scale * (1e-4 + (0.02 - 1e-4) * ramp)
    elif schedule == "cosine":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        result = np.minimum(1 - f[1:] / f[:-1], MAX_BETA)
    else:
        raise FastdiffError(
            f"unknown diffusion schedule {schedule!r}; known: linear, cosine, scaled_linear, sigmoid"
        )
    if result.max() >= 1:
        raise FastdiffError(
            f"the {schedule} schedule needs more than {steps} steps: its largest beta would be "
            f"{result.max():.3g}, and it must be below 1"
        )
    return result


def karras_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """n noise levels from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho); [n] float64.

    Karras et al. 2022, equation 5, without the final zero.
    """
    ramp = np.linspace(0, 1, n)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def space_timesteps(spec: int | str, steps: int) -> list[int]:
    """The timesteps out of ``range(steps)`` that a shortened run visits, in ascending order.

    Args:
        spec: ``"ddimN"``: the first whole stride that gives exactly N timesteps, starting at 0.
            ``"90,60,60,20,20"``: the range is cut into as many equal sections (the first ones take the
            remainder), and each is visited that many times, evenly, ends included.
            An int or its string: one section. A section visited once is visited at its start.
        steps: T of the diffusion process.

    The positions are rounded from a running float sum, not from ``i * stride``: the sum is part of the
    format, because released samples depend on the exact timesteps (IDDPM's ``respace.py``).

    Raises:
        FastdiffError: a specification that cannot be parsed, or with fewer than 1 or more timesteps than the process
            has.
    """
    text = str(spec).strip()
    if text.startswith("ddim"):
        return _first_stride(_count(text[len("ddim") :], spec), steps)
    counts = [_count(part, spec) for part in text.split(",")]
    size, extra = divmod(steps, len(counts))
    result, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if count > length:
            where = f"{steps} timesteps" if len(counts) == 1 else f"{length} in section {section + 1}"
            raise FastdiffError(f"steps {spec!r}: cannot take {count} of {where}")
        stride = (length - 1) / (count - 1) if count > 1 else 1
        position = 0.0
        for _ in range(count):
            result.append(start + round(position))
            position += stride
        start += length
    return result


def _first_stride(count: int, steps: int) -> list[int]:
    for stride in range(1, steps):
        visited = range(0, steps, stride)
        if len(visited) == count:
            return list(visited)
    raise FastdiffError(f"steps 'ddim{count}': no whole stride visits exactly {count} of {steps} timesteps")


def _count(text: str, spec: int | str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise FastdiffError(
            f"steps must be a whole number of at least 1, 'ddimN' or counts like '90,60,60,20,20'; "
            f"got {spec!r}"
        )
    return int(text)
