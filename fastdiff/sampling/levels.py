"""Noise levels: the grid of levels that a sampler visits, downwards (or upwards when encoding)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from fastdiff.diffusion.process import Process
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.errors import FastdiffError

Spacing = Literal["uniform", "karras", "logsnr"]


@dataclass(frozen=True)
class Levels:
    """S + 1 noise levels for S steps, in the order they are visited.

    Level i has x = signal[i] x_0 + noise[i] z with a standard normal z, and the model is given this x with times[i].
    A process that preserves variance, such as DDPM's, has signal = sqrt(abar) and noise = sqrt(1 - abar). noise = 0
    is the clean image.
    """

    signal: np.ndarray  # [S+1] float64
    noise: np.ndarray  # [S+1] float64
    times: np.ndarray  # [S+1] float64
    path: Callable[[np.ndarray], Levels] | None = None  # the levels of the same process at any sigmas

    @classmethod
    def preserving_variance(
        cls, alphas_bar: np.ndarray, times: np.ndarray, path: Callable[[np.ndarray], Levels] | None = None
    ) -> Levels:
        """The levels x = sqrt(abar) x_0 + sqrt(1 - abar) z."""
        return cls(np.sqrt(alphas_bar), np.sqrt(1 - alphas_bar), np.asarray(times, np.float64), path)

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def sigmas(self) -> np.ndarray:
        """Noise over signal: [S+1] float64."""
        return self.noise / self.signal

    def at(self, sigmas: np.ndarray) -> Levels:
        """The levels of the same process at other sigmas above 0, such as the midpoints of steps."""
        assert self.path is not None, "these levels were made without their process"
        return self.path(sigmas)

    def up(self) -> Levels:
        """The same levels from the cleanest noisy one to the noisiest, for encoding: S - 1 steps."""
        noisy = self.noise > 0
        signal, noise, times = (column[noisy][::-1] for column in (self.signal, self.noise, self.times))
        return Levels(signal, noise, times, self.path)


def make_levels(
    process: Process,
    steps: int | str,
    spacing: Spacing = "uniform",
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_clean: bool = True,
) -> Levels:
    """Levels for a run of ``steps`` steps over a process.

    ``uniform``: the process's own grid. Of discrete steps, timesteps picked by ``space_timesteps``, as ADM does;
    ``steps`` may be any of its specifications. Of EDM and consistency models, Karras's grid between the config's
    ends; of flows, evenly spaced times.
    ``karras``: :func:`karras_sigmas`. ``logsnr``: sigmas evenly spaced in log sigma.
    Of a discrete process the last two lie between its levels; there the model's time is interpolated linearly in
    log sigma (equally: in log-SNR), and held at the ends of the process's range.

    Args:
        sigma_min, sigma_max: ends of the karras and logsnr grids; by default the process's ``sigma_range``: of discrete
            steps its cleanest level, and the noisiest one or 80 if that is less.
        to_clean: finish with a step to the clean image; False: stop at the last noisy level.

    Raises:
        FastdiffError: fewer than 1 step or more than the process has, a specification that ``spacing``
            cannot use, an unknown spacing.
    """
    if spacing not in get_args(Spacing):
        raise FastdiffError(f"unknown spacing {spacing!r}; known: {', '.join(get_args(Spacing))}")
    if spacing == "uniform":
        levels = Levels(*process.own_levels(steps), partial(_at, process))
    else:
        low, high = sigma_min or process.sigma_range[0], sigma_max or process.sigma_range[1]
        points = _whole(steps, spacing, process.most_steps) + (not to_clean)
        karras = spacing == "karras"
        levels = _at(
            process,
            karras_sigmas(points, low, high, process.rho) if karras else np.geomspace(high, low, points),
        )
    return _finished(levels) if to_clean else levels


def _finished(levels: Levels) -> Levels:
    """The levels with the clean image after them, at the time of the last one."""
    return Levels(
        np.append(levels.signal, 1.0),
        np.append(levels.noise, 0.0),
        np.append(levels.times, levels.times[-1]),
        levels.path,
    )


def _at(process: Process, sigmas: np.ndarray) -> Levels:
    return Levels(*process.levels(sigmas), partial(_at, process))


def _whole(steps: int | str, spacing: str, available: float) -> int:
    text = str(steps).strip()
    if not text.isdecimal() or not 1 <= int(text) <= available:
        raise FastdiffError(
            f"steps with {spacing!r} spacing must be a whole number {_upto(available)}, got {steps!r}; "
            "specifications like 'ddim50' need spacing 'uniform'"
        )
    return int(text)


def _upto(available: float) -> str:
    return "of at least 1" if available == float("inf") else f"from 1 to {available}"
