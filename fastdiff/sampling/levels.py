"""Noise levels: the grid of levels that a sampler visits, downwards (or upwards when encoding)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastdiff.choices import Spacing
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.process import Process
from fastdiff.errors import FastdiffError
from fastdiff.sampling.grids import (
    check_ends,
    check_spacing,
    is_by_sigma,
    own_sigmas,
    sigma_grid,
    time_grid,
    zero_terminal_signal,
)


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
    rho: float | None = None,
    to_clean: bool = True,
) -> Levels:
    """Levels for a run of ``steps`` steps over a process.

    ``uniform``: the process's own grid. Of discrete steps, timesteps picked by ``space_timesteps``, as ADM does;
    ``steps`` may be any of its specifications. Of EDM and consistency models, Karras's grid between the config's
    ends; of flows, evenly spaced times.
    Other grids: :func:`~.grids.time_grid` by timesteps, :func:`~.grids.sigma_grid` by sigma. Between the levels of a
    discrete process the model's time is interpolated linearly in log sigma (equally: in log-SNR), and held at the ends
    of the process's range.

    Args:
        sigma_min, sigma_max: ends of a grid by sigma; by default the process's ``sigma_range``: of discrete steps its
            cleanest level, and the noisiest one or 80 if that is less.
        rho: exponent of a grid that has one; by default the process's.
        to_clean: finish with a step to the clean image; False: stop at the last noisy level.

    Raises:
        FastdiffError: fewer than 1 step or more than the process has, a specification that ``spacing``
            cannot use, an unknown spacing, ends that it does not have or that are no interval.
    """
    check_spacing(spacing)
    check_ends(spacing, sigma_min, sigma_max, rho)
    if spacing == "uniform":
        levels = Levels(*process.own_levels(steps), partial(_at, process))
    elif is_by_sigma(spacing):
        low, high = sigma_min or process.sigma_range[0], sigma_max or process.sigma_range[1]
        points = _whole(steps, spacing, process.most_steps) + (not to_clean)
        exponent = process.rho if rho is None and spacing != "polyexponential" else rho
        levels = _at(process, sigma_grid(spacing, points, low, high, exponent))
    else:
        levels = _at_times(process, spacing, _whole(steps, spacing, process.most_steps))
    return _finished(levels) if to_clean else levels


def levels_of(process: Process, sigmas: Sequence[float] | np.ndarray) -> Levels:
    """The levels of a user's own sigmas, which descend to 0: see :func:`~.grids.own_sigmas`."""
    return _finished(_at(process, own_sigmas(sigmas)[:-1]))


def _at_times(process: Process, spacing: str, steps: int) -> Levels:
    """Levels at timesteps of a process in discrete steps."""
    if not isinstance(process, GaussianDiffusion):
        kind = process.config.parametrisation
        raise FastdiffError(
            f"spacing {spacing!r} picks timesteps, and a model of kind {kind!r} has none; use 'karras'"
        )
    signal = np.sqrt(process.alphas_bar.numpy())
    times = process.timestep_map.numpy() * process.time_scale
    path = partial(_at, process)
    if spacing == "zero-terminal-snr":
        if process.config.prediction == "epsilon":
            raise FastdiffError(
                "spacing 'zero-terminal-snr' begins with pure noise, of which a prediction of epsilon says nothing; "
                "it needs a model that predicts x0 or v"
            )
        signal = zero_terminal_signal(signal)
        path = partial(_between, np.sqrt(1 / signal**2 - 1), times)
    position = time_grid(spacing, steps, process.steps)
    if spacing == "beta":
        return path(np.exp(np.interp(position, np.arange(process.steps), np.log(np.sqrt(1 / signal**2 - 1)))))
    index = position.astype(int)
    return Levels.preserving_variance(signal[index] ** 2, times[index], path)


def _between(known: np.ndarray, known_times: np.ndarray, sigmas: np.ndarray) -> Levels:
    """Levels between known ones: the model's time is interpolated linearly in log sigma."""
    times = np.interp(np.log(sigmas), np.log(known), known_times)
    signal = 1 / np.sqrt(1 + sigmas**2)
    return Levels(signal, sigmas * signal, times, partial(_between, known, known_times))


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
