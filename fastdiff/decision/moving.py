"""Densities for collapsing boundaries, time-varying drift and leaky walks, by solving an integral equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastdiff.errors import FastdiffError

_OPEN = 1e-3  # share of the separation below which the boundaries are taken to have met


@dataclass(frozen=True)
class Closing:
    """Collapsing boundaries at a c(t) / 2 and a (1 - c(t) / 2), with c rising from 0 (open) towards 1 (met).

    kind: "linear", c = t / scale; "exponential", c = share (1 - exp(-t / scale)); "weibull",
    c = share (1 - exp(-(t / scale)^shape)). scale in seconds.
    """

    kind: str = "exponential"
    scale: float = 1.0
    shape: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "exponential", "weibull"):
            raise FastdiffError(f"boundaries close linear, exponential or weibull, got {self.kind!r}")
        if not (self.scale > 0 and self.shape >= 1 and 0 <= self.share <= 1):
            raise FastdiffError(
                "closing boundaries need a positive scale, a shape of at least 1, a share of 0 to 1"
            )

    def at(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c and dc / dt."""
        if self.kind == "linear":
            return t / self.scale, np.full_like(t, 1 / self.scale)
        power = self.shape if self.kind == "weibull" else 1.0
        left = self.share * np.exp(-((t / self.scale) ** power))
        return self.share - left, left * power / self.scale * (t / self.scale) ** (power - 1)


class MovingDensity(NamedTuple):
    """Densities on a grid of decision times."""

    t: np.ndarray  # [K + 1] seconds, from 0
    lower: np.ndarray  # [K + 1] density of the decision time at either boundary
    upper: np.ndarray


def moving_density(
    v: float | Callable[[np.ndarray], np.ndarray], a: float, z: float = 0.5, s: float = 1.0, *,
    closing: Closing | None = None, leak: float = 0.0, t_max: float = 3.0, steps: int = 300,
) -> MovingDensity:  # fmt: skip
    r"""First-passage densities of dx = (v(t) - leak (x - a / 2)) dt + s dW between boundaries that may close.

    With f the free walk's transition density, mean m and variance V, and for a boundary S

    .. math::
        \Psi(S, t | y, \tau) = \tfrac12 f(S(t), t | y, \tau)
            \Big[ S'(t) - \mu(S(t), t) - \frac{S(t) - m(t | y, \tau)}{V(t - \tau)} \Big]

    the two densities solve a pair of Volterra equations of the second kind, whose kernels vanish at tau = t:

    .. math::
        g_u(t) = -2 \Psi(u, t | z, 0) + 2 \int_0^t [g_u(\tau) \Psi(u, t | u(\tau), \tau)
                 + g_l(\tau) \Psi(u, t | l(\tau), \tau)] d\tau

    and the like for l with the signs turned. Trapezoidal rule: the error falls with the square of ``steps``.

    Args:
        v: drift, or a function of an array of seconds.
        a, z, s: separation, start as a fraction of it, noise.
        closing: movement of the boundaries. Default: they are fixed.
        leak: 1 / seconds; negative for self-excitation.
        t_max, steps: the grid; it ends early where the boundaries meet.

    Raises:
        FastdiffError: SciPy missing, or parameters out of range.

    Source: Buonocore, Giorno, Nobile & Ricciardi 1990, "On the two-boundary first-crossing-time problem for diffusion
    processes"; Smith 2000, "Stochastic dynamic models of response time and accuracy: a foundational primer".
    """
    if not (a > 0 and s > 0 and 0 < z < 1 and t_max > 0 and steps >= 2):
        raise FastdiffError(
            "moving boundaries need a, s, t_max above 0, z between 0 and 1 and at least 2 steps"
        )
    try:
        from scipy.linalg import solve_triangular
    except ImportError:
        raise FastdiffError("moving boundaries need SciPy: pip install 'fastdiff[decision]'") from None
    t = np.linspace(0, t_max, steps + 1)
    c, slope = closing.at(t) if closing is not None else (np.zeros_like(t), np.zeros_like(t))
    t, c, slope = (x[: max(3, int(np.searchsorted(c, 1 - _OPEN)))] for x in (t, c, slope))
    half = a / (2 * s)
    walls = np.stack([-half * (1 - c), half * (1 - c)])  # [2, K + 1] in units of the noise, around the middle
    speeds = np.stack([half * slope, -half * slope])
    free = _FreeWalk(v, s, leak, t)
    h, n = t[1] - t[0], len(t) - 1
    signs = np.array([2.0, -2.0])[:, None]
    begin = (z - 0.5) * a / s
    right = signs * free.psi(walls[:, 1:], speeds[:, 1:], np.arange(1, n + 1), begin, 0)
    matrix = np.zeros((n, 2, n, 2))
    rows, columns = np.tril_indices(n, -1)
    for to in (0, 1):
        for source in (0, 1):
            kernel = free.psi(
                walls[to, rows + 1], speeds[to, rows + 1], rows + 1, walls[source, columns + 1], columns + 1
            )
            matrix[rows, to, columns, source] = signs[to, 0] * h * kernel
    system = np.eye(2 * n) + matrix.reshape(2 * n, 2 * n)
    found = solve_triangular(system, right.T.reshape(-1), lower=True, check_finite=False).reshape(n, 2)
    density = np.concatenate([np.zeros((1, 2)), found]).clip(0).T
    return MovingDensity(t, density[0], density[1])


def moving_pdf(
    rt: Any, choice: Any, v: Any, a: float, z: float = 0.5, t0: float = 0.0, s: float = 1.0, **options: Any
):
    """Density of response times at a boundary (choice 1 upper, 0 lower), interpolated from :func:`moving_density`.

    Times after the grid's end have the density 0. options: closing, leak, t_max, steps.
    """
    found = moving_density(v, a, z, s, **options)
    times = np.asarray(rt, dtype=float) - t0
    both = [np.interp(times, found.t, side, left=0.0, right=0.0) for side in (found.lower, found.upper)]
    return np.where(np.asarray(choice) == 1, both[1], both[0])


class _FreeWalk:
    """The walk without boundaries, x in units of the noise and from the middle between the boundaries."""

    def __init__(self, v: Any, s: float, leak: float, t: np.ndarray) -> None:
        self.leak, self.t = leak, t
        fine = np.linspace(0, t[-1], 8 * (len(t) - 1) + 1)
        drift = (v(fine) if callable(v) else v) * np.ones_like(fine) / s
        self.drift = drift[::8]
        pushed = np.exp(leak * fine) * drift
        steps = (pushed[1:] + pushed[:-1]) / 2 * np.diff(fine)
        self.pushed = np.concatenate([[0.0], np.cumsum(steps)])[::8]

    def psi(self, wall: Any, speed: Any, now: np.ndarray, start: Any, then: Any) -> np.ndarray:
        """Psi at times numbered ``now`` for walks that were at ``start`` at times numbered ``then``."""
        gone = self.t[now] - self.t[then]
        fall = np.exp(-self.leak * gone)
        mean = start * fall + np.exp(-self.leak * self.t[now]) * (self.pushed[now] - self.pushed[then])
        variance = gone if self.leak == 0 else -np.expm1(-2 * self.leak * gone) / (2 * self.leak)
        off = (wall - mean) / variance
        density = np.exp(-off * (wall - mean) / 2) / np.sqrt(2 * math.pi * variance)
        return 0.5 * density * (speed - (self.drift[now] - self.leak * wall) - off)
