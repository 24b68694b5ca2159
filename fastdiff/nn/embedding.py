"""Sinusoidal timestep embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """[N] timesteps, whole or fractional -> [N, dim] float32: ``[cos(t f_0).., sin(t f_0)..]``.

    f_i = max_period^(-i / (dim // 2)), i = 0 .. dim // 2 - 1: ADM's order and denominator. (DDPM's own code
    has sines first and divides by dim // 2 - 1.) An odd dim ends in a zero.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * exponent)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, 1)) if dim % 2 else embedding
