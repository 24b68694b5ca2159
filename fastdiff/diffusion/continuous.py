"""Processes in continuous time: EDM, consistency models and rectified flow. Formulas: :class:`DiffusionConfig`."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion.config import DiffusionConfig, Prediction
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.process import NoiseLevels, Process
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.errors import FastdiffError

LEAST_SIGMA = 1e-44  # added to sigma in its logarithm: the time at sigma = 0, in the authors' code


class ContinuousDiffusion(Process):
    """A process whose levels are any sigma; in training, t [N] is sigma.

    Args:
        config: of the kind's ``parametrisation``.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.rho = config.rho

    @property
    def most_steps(self) -> float:
        return math.inf

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.config.sigma_min, self.config.sigma_max

    def own_levels(self, steps: int | str) -> NoiseLevels:
        text = str(steps).strip()
        if not text.isdecimal() or int(text) < 1:
            raise FastdiffError(
                f"steps must be a whole number of at least 1, got {steps!r}; specifications like 'ddim50' are of "
                f"models that were trained in discrete steps, and this one is of kind {self.config.parametrisation!r}"
            )
        return self.levels(self._own_sigmas(int(text)))

    def _own_sigmas(self, count: int) -> np.ndarray:
        return karras_sigmas(count, *self.sigma_range, self.rho)

    def with_prediction(self, prediction: Prediction) -> Process:
        raise FastdiffError(
            f"a model of kind {self.config.parametrisation!r} predicts what that kind says; leave out predicts "
            f"(got {prediction!r})"
        )

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, deviation = self._scales(_column(t, x0))
        return signal * x0 + deviation * noise

    def sigmas(self, t: Tensor) -> Tensor:
        return t.double()

    def nearest(self, sigma: Tensor) -> Tensor:
        return sigma

    def predict_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        levels: Any = self._scales(_column(t, x_t))
        of_x, of_output = self.to_x0(*levels)
        return of_x * x_t + of_output * prediction

    def snr(self, t: Tensor, like: Tensor) -> Tensor:
        return _column(t, like) ** -2.0

    @abstractmethod
    def _scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) at sigma."""


class EDMDiffusion(ContinuousDiffusion):
    """Karras et al. 2022, table 1, last column. The target of F is (sigma x_0 / s - s z) / sqrt(sigma^2 + s^2).

    The plain squared error of F is the published loss: its weight of the error of x_0 is 1 / c_out^2.
    """

    training_noise = (-1.2, 1.2)

    def levels(self, sigmas: np.ndarray) -> NoiseLevels:
        signal = 1 / np.sqrt(sigmas**2 + self.config.sigma_data**2)
        return NoiseLevels(signal, sigmas * signal, 250 * np.log(sigmas + LEAST_SIGMA))

    def to_x0(self, signal: float, noise: float) -> tuple[float, float]:
        sigma, data = noise / signal, self.config.sigma_data
        return data**2 / (sigma**2 + data**2) / signal, sigma * data * signal

    def model_time(self, t: Tensor) -> Tensor:
        return 250 * torch.log(t.double() + LEAST_SIGMA).to(torch.promote_types(t.dtype, torch.float32))

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        sigma, data = _column(t, x0), self.config.sigma_data
        return (sigma / data * x0 - data * noise) / torch.sqrt(sigma**2 + data**2)

    def error_factor(self, t: Tensor, like: Tensor) -> Tensor:
        sigma, data = _column(t, like), self.config.sigma_data
        return (sigma * data) ** 2 / (sigma**2 + data**2)

    def _scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in = torch.rsqrt(sigma**2 + self.config.sigma_data**2)
        return c_in, sigma * c_in


class ConsistencyDiffusion(EDMDiffusion):
    """Song et al. 2023, appendix C: EDM's coefficients, such that D(x, sigma_min) = x."""

    def to_x0(self, signal: float, noise: float) -> tuple[float, float]:
        data = self.config.sigma_data
        above = noise / signal - self.config.sigma_min
        return data**2 / (above**2 + data**2) / signal, above * data * signal

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        sigma, data = _column(t, x0), self.config.sigma_data
        above = sigma - self.config.sigma_min
        skip = data**2 / (above**2 + data**2)
        return (x0 - skip * (x0 + sigma * noise)) * torch.sqrt(sigma**2 + data**2) / (above * data)

    def error_factor(self, t: Tensor, like: Tensor) -> Tensor:
        sigma, data = _column(t, like), self.config.sigma_data
        return ((sigma - self.config.sigma_min) * data) ** 2 / (sigma**2 + data**2)


class FlowDiffusion(ContinuousDiffusion):
    """Rectified flow (Liu et al. 2022; Lipman et al. 2023), with t = sigma / (1 + sigma): the target is z - x_0.

    Its own grid is evenly spaced in t, from sigma_max (t = 80/81, and not 1, where sigma is infinite) to 1/n of it.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.time_scale = 1000.0 if config.rescale_timesteps else 1.0

    def levels(self, sigmas: np.ndarray) -> NoiseLevels:
        signal = 1 / (1 + sigmas)
        return NoiseLevels(signal, sigmas * signal, self.time_scale * sigmas * signal)

    def _own_sigmas(self, count: int) -> np.ndarray:
        high = self.config.sigma_max
        t = high / (1 + high) * (1 - np.arange(count) / count)
        return t / (1 - t)

    def to_x0(self, signal: float, noise: float) -> tuple[float, float]:
        # x = signal x_0 + noise z of any signal + noise, so that levels off the flow's own would be right, too.
        total = signal + noise
        return 1 / total, -noise / total

    def model_time(self, t: Tensor) -> Tensor:
        sigma = t.to(torch.promote_types(t.dtype, torch.float32))
        return self.time_scale * sigma / (1 + sigma)

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise - x0

    def error_factor(self, t: Tensor, like: Tensor) -> Tensor:
        sigma = _column(t, like)
        return (sigma / (1 + sigma)) ** 2

    def _scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / (1 + sigma), sigma / (1 + sigma)


_KINDS = {
    "discrete": GaussianDiffusion,
    "edm": EDMDiffusion,
    "consistency": ConsistencyDiffusion,
    "flow": FlowDiffusion,
}


def make_process(config: DiffusionConfig) -> Process:
    """The process that a config describes."""
    return _KINDS[config.parametrisation](config)


def _column(t: Tensor, like: Tensor) -> Tensor:
    """sigma [N] as [N,1,...,1], in the precision of ``like``, at least float32."""
    if t.shape != like.shape[:1] or not t.is_floating_point():
        raise FastdiffError(
            f"t must be sigmas, one per sample, [{like.shape[0]}], got {t.dtype} {list(t.shape)}"
        )
    return t.to(torch.promote_types(like.dtype, torch.float32)).reshape(-1, *[1] * (like.ndim - 1))
