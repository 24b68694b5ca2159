"""consistency_models' ``resample``: guided-diffusion's schedule samplers, and EDM's distribution of sigma."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.interop.guided_diffusion import resample
from fastdiff.interop.guided_diffusion.resample import LossAwareSampler as LossAwareSampler
from fastdiff.interop.guided_diffusion.resample import LossSecondMomentResampler as LossSecondMomentResampler
from fastdiff.interop.guided_diffusion.resample import ScheduleSampler as ScheduleSampler
from fastdiff.interop.guided_diffusion.resample import UniformSampler as UniformSampler


def create_named_schedule_sampler(name: str, diffusion: Any) -> Any:
    """ "lognormal", for EDM; "uniform" or "loss-second-moment"."""
    return (
        LogNormalSampler() if name == "lognormal" else resample.create_named_schedule_sampler(name, diffusion)
    )


class LogNormalSampler:
    """ln sigma ~ N(p_mean, p_std^2), from PyTorch's global generator, with weights 1."""

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        self.p_mean, self.p_std = p_mean, p_std

    def sample(self, bs: int, device: Any) -> tuple[Tensor, Tensor]:
        sigmas = torch.exp(self.p_mean + self.p_std * torch.randn(bs, device=device))
        return sigmas, torch.ones_like(sigmas)
