"""Grids of noise levels: sigmas between two ends, timesteps of a process, and a user's own sigmas. float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from fastdiff.choices import SigmaSpacing, Spacing
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.errors import FastdiffError, nearest

# The signal of a level that should have none, so that sigma stays finite; less than that of the level before.
TERMINAL_SIGNAL = 2.0**-16
_RHO = {"karras": 7.0, "consistency": 7.0, "polyexponential": 1.0}


def check_spacing(spacing: str) -> None:
    """Raises FastdiffError for an unknown name."""
    known = [name for kind in get_args(Spacing) for name in get_args(kind) or (kind,)]
    if spacing not in known:
        raise FastdiffError(
            f"unknown spacing {spacing!r}{nearest(str(spacing), known)}; known: {', '.join(known)}"
        )


def is_by_sigma(spacing: str) -> bool:
    """True if the spacing places sigmas between two ends; False if it picks timesteps of the process."""
    return spacing in get_args(SigmaSpacing)


def check_ends(spacing: str, sigma_min: float | None, sigma_max: float | None, rho: float | None) -> None:
    """Raises FastdiffError where ends or rho do not fit the spacing or one another; None: not given."""
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)):
        if value is None:
            continue
        if not np.isfinite(value) or value <= 0:
            raise FastdiffError(f"{name} must be a positive number, got {value!r}")
        if name == "rho" and spacing not in _RHO:
            raise FastdiffError(f"spacing {spacing!r} has no rho; {', '.join(_RHO)} have")
        if name != "rho" and (not is_by_sigma(spacing) or spacing == "vp"):
            raise FastdiffError(f"spacing {spacing!r} has ends of its own; leave out {name}, or use 'karras'")


def sigma_grid(spacing: str, points: int, low: float, high: float, rho: float | None = None) -> np.ndarray:
    r"""``points`` sigmas from the highest down, [points]; r goes evenly from 0 to 1.

    ================= ===================================================================== ======================
    karras            :math:`(h^{1/\rho} + r (l^{1/\rho} - h^{1/\rho}))^\rho`, rho 7         Karras et al. 2022
    logsnr            :math:`\exp(\log h + r (\log l - \log h))`; also "exponential"         k-diffusion
    polyexponential   :math:`\exp((1 - r)^\rho (\log h - \log l) + \log l)`, rho 1           k-diffusion
    vp                :math:`\sqrt{\exp(19.9 t^2/2 + 0.1 t) - 1}`, t from 1 to 0.001         Song et al. 2021
    consistency       karras with one point more, less the last: each point has work to do
    ================= ===================================================================== ======================

    Raises:
        FastdiffError: l is not below h.
    """
    if spacing == "vp":
        t = np.linspace(1, 1e-3, points)
        return np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t))
    if low >= high:
        raise FastdiffError(f"sigma_min must be below sigma_max, got {low:g} and {high:g}")
    if spacing in ("logsnr", "exponential"):
        return np.geomspace(high, low, points)
    rho = _RHO[spacing] if rho is None else rho
    if spacing == "polyexponential":
        return np.exp(np.linspace(1, 0, points) ** rho * (np.log(high) - np.log(low)) + np.log(low))
    if spacing == "consistency":
        return karras_sigmas(points + 1, low, high, rho)[:-1]
    return karras_sigmas(points, low, high, rho)


def time_grid(spacing: str, steps: int, available: int) -> np.ndarray:
    """``steps`` positions in 0 .. available - 1, the noisiest first; those of "beta" lie between whole ones.

    =================== ====================================================================================
    simple              from the last timestep down in even strides, rounded
    trailing            ends of even sections, the last timestep among them (Lin et al. 2024)
    zero-terminal-snr   those of trailing; the levels are another process's, see :func:`zero_terminal_signal`
    beta                quantiles of the Beta(0.6, 0.6) distribution, dense at both ends (Lee et al. 2024)
    =================== ====================================================================================
    """
    i = np.arange(steps)
    if spacing == "simple":
        return available - 1.0 - i * available // steps
    if spacing == "beta":
        return _beta_quantiles(1 - i / steps) * (available - 1)
    return np.round(available - i * (available / steps)) - 1.0


def _beta_quantiles(p: np.ndarray, a: float = 0.6) -> np.ndarray:
    """Quantiles of Beta(a, a). With x = sin^2 u the density is (sin 2u)^(2a - 1), whose integral is tabulated."""
    u = np.linspace(0, np.pi / 2, 1 << 16)
    middle = (u[1:] + u[:-1]) / 2
    cumulated = np.append(0.0, np.cumsum(np.sin(2 * middle) ** (2 * a - 1)))
    return np.sin(np.interp(p, cumulated / cumulated[-1], u)) ** 2


def zero_terminal_signal(signal: np.ndarray) -> np.ndarray:
    """The process's signals [T], moved and scaled so that the first stays and the last is (nearly) 0.

    Lin et al. 2024, algorithm 1. A model was to be trained for it, and to predict x_0 or v.
    """
    first, last = signal[0], signal[-1]
    scaled = (signal - last) * first / (first - last)
    return np.append(scaled[:-1], min(TERMINAL_SIGNAL, scaled[-2] / 2))


def own_sigmas(sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """A user's sigmas [S + 1], checked: descending to 0, as k-diffusion's functions take them.

    Raises:
        FastdiffError: fewer than two, numbers that do not descend, a last one that is not 0, NaN or infinity.
    """
    try:
        # A tensor on a GPU has to be brought here first.
        given = sigmas.detach().cpu() if hasattr(sigmas, "detach") else sigmas  # pyright: ignore
        grid = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise FastdiffError(f"sigmas must be numbers that descend to 0, got {sigmas!r}") from None
    if grid.ndim != 1 or len(grid) < 2:
        raise FastdiffError(f"sigmas must be a row of at least two numbers, got shape {list(grid.shape)}")
    if not np.isfinite(grid).all():
        raise FastdiffError("sigmas must be finite, but have NaN or infinity")
    if grid[-1] != 0:
        raise FastdiffError(f"sigmas must end with 0, the clean image, got {grid[-1]:g}")
    for before, after in zip(grid, grid[1:], strict=False):
        if after == before:
            raise FastdiffError(f"sigmas must not repeat, but {before:g} does")
        if after > before:
            raise FastdiffError(f"sigmas must descend, but {after:g} comes after {before:g}")
    return grid
