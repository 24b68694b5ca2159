"""Noise levels: the grid of levels that a sampler visits, downwards (or upwards when encoding)."""

from __future__ import annotations

from dataclasses import dataclass
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

    Level i has x = sqrt(alphas_bar[i]) x_0 + sqrt(1 - alphas_bar[i]) noise, and the model is given times[i] for it.
    alphas_bar = 1 is the clean image.
    """

    alphas_bar: np.ndarray  # [S+1] float64
    times: np.ndarray  # [S+1] float64

    @property
    def steps(self) -> int:
        return len(self.alphas_bar) - 1

    @property
    def sigmas(self) -> np.ndarray:
        """Noise over signal, sqrt((1 - abar) / abar): [S+1] float64."""
        return np.sqrt(1 / self.alphas_bar - 1)

    def up(self) -> Levels:
        """The same levels from the cleanest noisy one to the noisiest, for encoding: S - 1 steps."""
        noisy = self.alphas_bar < 1
        return Levels(self.alphas_bar[noisy][::-1], self.times[noisy][::-1])


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
    if spacing == "uniform":
        short = diffusion.respaced(steps)
        alphas_bar = short.alphas_bar.numpy()[::-1]
        times = short.timestep_map.numpy()[::-1] * short.time_scale
    else:
        table = np.sqrt(1 / diffusion.alphas_bar.numpy() - 1)
        low = sigma_min or float(table[0])
        high = sigma_max or min(float(table[-1]), MAX_SIGMA)
        sigmas = _grid(_whole(steps, spacing, diffusion.steps), spacing, low, high, to_clean)
        alphas_bar = 1 / (1 + sigmas**2)
        times = _time_of(sigmas, table, diffusion)
    if to_clean:
        alphas_bar, times = np.append(alphas_bar, 1.0), np.append(times, times[-1])
    return Levels(np.asarray(alphas_bar, np.float64), np.asarray(times, np.float64))


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


def _time_of(sigmas: np.ndarray, table: np.ndarray, diffusion: GaussianDiffusion) -> np.ndarray:
    position = np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
    times = np.interp(position, np.arange(len(table)), diffusion.timestep_map.numpy())
    return times * diffusion.time_scale
