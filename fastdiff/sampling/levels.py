"""Noise levels: the grid of levels that a sampler visits, downwards (or upwards when encoding)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.errors import FastdiffError

Spacing = Literal["uniform", "karras", "logsnr"]

# Above sigma = 80 data in [-1, 1] are lost in the noise (EDM, table 1); cosine schedules go on to 20000.
MAX_SIGMA = 80.0


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
    diffusion: GaussianDiffusion,
    steps: int | str,
    spacing: Spacing = "uniform",
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_clean: bool = True,
) -> Levels:
    """Levels for a run of ``steps`` steps over a discrete diffusion process.

    ``uniform``: timesteps of the process picked by ``space_timesteps``, as ADM does; ``steps`` may be any of
    its specifications. ``karras``: :func:`karras_sigmas`. ``logsnr``: sigmas evenly spaced in log sigma.
    The last two lie between the process's own levels; there the model's time is interpolated linearly in
    log sigma (equally: in log-SNR), and held at the ends of the process's range.

    Args:
        sigma_min, sigma_max: ends of the karras and logsnr grids; by default the cleanest level of the
            process, and the noisiest one or 80 if that is less.
        to_clean: finish with a step to the clean image; False: stop at the last noisy level.

    Raises:
        FastdiffError: fewer than 1 step or more than the process has, a specification that ``spacing``
            cannot use, an unknown spacing.
    """
    if spacing not in get_args(Spacing):
        raise FastdiffError(f"unknown spacing {spacing!r}; known: {', '.join(get_args(Spacing))}")
    path = partial(_between, diffusion)
    if spacing == "uniform":
        short = diffusion.respaced(steps)
        times = short.timestep_map.numpy()[::-1] * short.time_scale
        levels = Levels.preserving_variance(short.alphas_bar.numpy()[::-1], times, path)
    else:
        table = _sigmas(diffusion)
        low = sigma_min or float(table[0])
        high = sigma_max or min(float(table[-1]), MAX_SIGMA)
        levels = path(_grid(_whole(steps, spacing, diffusion.steps), spacing, low, high, to_clean))
    return _finished(levels) if to_clean else levels


def _finished(levels: Levels) -> Levels:
    """The levels with the clean image after them, at the time of the last one."""
    return Levels(
        np.append(levels.signal, 1.0),
        np.append(levels.noise, 0.0),
        np.append(levels.times, levels.times[-1]),
        levels.path,
    )


def _between(diffusion: GaussianDiffusion, sigmas: np.ndarray) -> Levels:
    """Levels between those of the process: the model's time is interpolated linearly in log sigma."""
    table = _sigmas(diffusion)
    position = np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
    times = np.interp(position, np.arange(len(table)), diffusion.timestep_map.numpy()) * diffusion.time_scale
    signal = 1 / np.sqrt(1 + sigmas**2)
    return Levels(signal, sigmas * signal, times, partial(_between, diffusion))


def _sigmas(diffusion: GaussianDiffusion) -> np.ndarray:
    return np.sqrt(1 / diffusion.alphas_bar.numpy() - 1)


def _grid(steps: int, spacing: Spacing, low: float, high: float, to_clean: bool) -> np.ndarray:
    points = steps if to_clean else steps + 1
    return karras_sigmas(points, low, high) if spacing == "karras" else np.geomspace(high, low, points)


def _whole(steps: int | str, spacing: str, available: int) -> int:
    text = str(steps).strip()
    if not text.isdecimal() or not 1 <= int(text) <= available:
        raise FastdiffError(
            f"steps with {spacing!r} spacing must be a whole number from 1 to {available}, got {steps!r}; "
            "specifications like 'ddim50' need spacing 'uniform'"
        )
    return int(text)
