"""What every diffusion process is to samplers and losses, in discrete steps or in continuous time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion.config import DiffusionConfig, Prediction
from fastdiff.errors import FastdiffError

Model = Callable[..., Tensor]  # model(x [N,C,*], t [N], **cond) -> [N,C,*] or [N,2C,*]


class NoiseLevels(NamedTuple):
    """States x = signal x_0 + noise z, and the times that the model is given with them: [S] float64 each."""

    signal: np.ndarray
    noise: np.ndarray
    times: np.ndarray


class Process(ABC):
    """A process x = signal x_0 + noise z, and what the output of its model means.

    A level of noise is named by sigma = noise / signal. In training, t [N] names the levels of N images: the step of a
    process in discrete steps, else sigma.
    """

    config: DiffusionConfig
    # x_T = z, as ADM's code has it, although noise_T is not quite 1; else x_T = noise_T z. The same for the image that
    # encoding starts from.
    starts_unscaled: bool = False
    rho: float = 7.0  # exponent of Karras grids
    # Mean and deviation of ln sigma in training, where the kind's authors say so.
    training_noise: tuple[float, float] | None = None

    # --- sampling: float64 on the host --------------------------------------------------------------------

    @abstractmethod
    def levels(self, sigmas: np.ndarray) -> NoiseLevels:
        """The levels at any sigmas above 0."""

    @abstractmethod
    def own_levels(self, steps: int | str) -> NoiseLevels:
        """The process's own grid of levels for a run of ``steps`` steps, descending, without the clean image.

        Raises:
            FastdiffError: a number of steps, or a specification of them, that the process does not have.
        """

    @property
    @abstractmethod
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest sigma that the model knows."""

    @property
    @abstractmethod
    def most_steps(self) -> float:
        """T of a process in T steps; infinity of one in continuous time."""

    @abstractmethod
    def to_x0(self, signal: float, noise: float) -> tuple[float, float]:
        """(u, w) of x_0 = u x + w output at a level."""

    @abstractmethod
    def with_prediction(self, prediction: Prediction) -> Process:
        """The process of a model that predicts something else.

        Raises:
            FastdiffError: the process leaves no choice.
        """

    # --- training: tensors --------------------------------------------------------------------------------

    @abstractmethod
    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x = signal x_0 + noise z for x_0, z [N,C,*] and t [N]."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """The times [N] that the model is given."""

    @abstractmethod
    def sigmas(self, t: Tensor) -> Tensor:
        """sigma of t, [N] float64."""

    @abstractmethod
    def nearest(self, sigma: Tensor) -> Tensor:
        """The t [N] whose sigma is nearest to ``sigma`` [N], in its logarithm."""

    @abstractmethod
    def predict_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 from the model's prediction [N,C,*] at x_t."""

    @abstractmethod
    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The output of a perfect model that knew x_0 and the noise, [N,C,*]."""

    @abstractmethod
    def snr(self, t: Tensor, like: Tensor) -> Tensor:
        """Signal-to-noise ratio signal^2 / noise^2, [N,1,...,1] to broadcast against ``like`` [N,C,*]."""

    @abstractmethod
    def error_factor(self, t: Tensor, like: Tensor) -> Tensor:
        """w^2 of :meth:`to_x0`: squared error of x_0 over that of the output, [N,1,...,1]."""

    def split(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The model's output as (prediction [N,C,*], variance channels [N,C,*] or None), at least float32.

        Raises:
            FastdiffError: the output does not have the shape that the config promises.
        """
        channels = x.shape[1]
        promised = 2 * channels if self.config.learns_variance else channels
        expected = (x.shape[0], promised, *x.shape[2:])
        if tuple(output.shape) != expected:
            raise FastdiffError(
                f"the model returned {list(output.shape)} for x {list(x.shape)}; "
                f"variance {self.config.variance!r} needs {list(expected)}"
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return output[:, :channels], output[:, channels:] if promised > channels else None
