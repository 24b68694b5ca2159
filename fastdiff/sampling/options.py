"""Keyword arguments of the functions that make a ``Sampler`` and call it, for type checkers.

The fields of :class:`~fastdiff.sampling.api.Sampler` and of
:class:`~fastdiff.sampling.request.RequestArguments`, which say what each is; ``tests/typing`` compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from fastdiff.choices import SamplerOrAlias, Spacing
from fastdiff.diffusion.config import DiffusionConfig, Prediction
from fastdiff.diffusion.process import Process
from fastdiff.sampling.conditions import Condition
from fastdiff.sampling.convention import Time
from fastdiff.sampling.precision import Precision
from fastdiff.sampling.progress import Follow
from fastdiff.sampling.request import Classes


class SamplerOptions(TypedDict, total=False):
    """How to sample."""

    shape: Sequence[int] | None
    sampler: SamplerOrAlias | None
    steps: int | str | None
    spacing: Spacing | None
    sigma_min: float | None
    sigma_max: float | None
    rho: float | None
    sigmas: Sequence[float] | Tensor | None
    eta: float | None
    s_churn: float | None
    s_tmin: float | None
    s_tmax: float | None
    s_noise: float | None
    order: int | None
    rtol: float | None
    atol: float | None
    restarts: Sequence[tuple[float, float, int, int]] | None
    guidance_scale: float | None
    clip: bool
    batch_size: int | None
    diffusion: DiffusionConfig | Process | None
    predicts: Prediction | None
    time: Time
    device: torch.device | str | None
    memory_format: torch.memory_format
    optimize: bool
    precision: Precision | None
    capture: bool


class RequestOptions(TypedDict, total=False):
    """What to sample."""

    classes: Classes | None
    seed: int | None
    seeds: Sequence[int] | Tensor | None
    noise: Tensor | None
    cond: Mapping[str, Tensor] | None


class ConditionedOptions(RequestOptions, total=False):
    """What to sample, and what else is known of it."""

    condition: Condition | None


class BatchOptions(SamplerOptions, ConditionedOptions, total=False):
    """Both."""


class RestorationOptions(SamplerOptions, RequestOptions, total=False):
    """Both, where the function itself makes the condition."""

    progress: Follow
