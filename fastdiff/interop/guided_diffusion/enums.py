"""Options of guided-diffusion's processes: enumerations and noise schedules."""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np

from fastdiff.diffusion import schedule


class ModelMeanType(enum.Enum):
    """Type of the model's prediction."""

    PREVIOUS_X = enum.auto()  # x_{t-1}
    START_X = enum.auto()  # x_0
    EPSILON = enum.auto()


class ModelVarType(enum.Enum):
    """The variance of the reverse step; LEARNED_RANGE lies between FIXED_SMALL and FIXED_LARGE."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()


class LossType(enum.Enum):
    """Type of the loss: an error, or the variational bound; "rescaled" as if for all steps."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self) -> bool:
        return self in (LossType.KL, LossType.RESCALED_KL)


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """ "linear" or "cosine": [T] float64."""
    if schedule_name not in ("linear", "cosine"):
        raise NotImplementedError(f"unknown beta schedule: {schedule_name}")
    return schedule.betas(schedule_name, num_diffusion_timesteps)


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """beta_i = min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), max_beta), [T] float64."""
    level = np.array([alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)])
    return np.minimum(1 - level[1:] / level[:-1], max_beta)


VARIANCES = {  # names in DiffusionConfig
    ModelVarType.LEARNED: "learned",
    ModelVarType.FIXED_SMALL: "fixed_small",
    ModelVarType.FIXED_LARGE: "fixed_large",
    ModelVarType.LEARNED_RANGE: "learned_range",
}
