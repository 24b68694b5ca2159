"""Inputs of conv2d's tests, the same for every call with the same seed."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(*shape, seed=seed, dtype=dtype).contiguous(memory_format=torch.channels_last)


def filters(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return (normal(*shape, seed=seed) / torch.Size(shape[1:]).numel() ** 0.5).to(dtype)
