"""guided-diffusion's ``nn``: small building blocks under its names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from fastdiff.diffusion.likelihood import mean_flat as mean_flat
from fastdiff.nn import GroupNormSiLU
from fastdiff.nn import timestep_embedding as _timestep_embedding
from fastdiff.nn import zero_module as zero_module

SiLU = nn.SiLU


class GroupNorm32(GroupNormSiLU):
    """GroupNorm computed in float32 and returned in the input's dtype; no activation."""

    def __init__(self, num_groups: int, num_channels: int) -> None:
        super().__init__(num_channels, num_groups, silu=False)


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution of 1, 2 or 3 dimensions."""
    return _by_dims("dims", dims, (nn.Conv1d, nn.Conv2d, nn.Conv3d))(*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Average pooling of 1, 2 or 3 dimensions."""
    return _by_dims("dims", dims, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d))(*args, **kwargs)


def _by_dims(name: str, dims: int, classes: Sequence[type]) -> Any:
    if dims not in (1, 2, 3):
        raise ValueError(f"unsupported dimensions: {dims}")
    return classes[dims - 1]


def linear(*args: Any, **kwargs: Any) -> nn.Linear:
    """nn.Linear."""
    return nn.Linear(*args, **kwargs)


@torch.no_grad()
def update_ema(target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99) -> None:
    """target = rate target + (1 - rate) source, in place."""
    for target, source in zip(target_params, source_params, strict=True):
        target.mul_(rate).add_(source, alpha=1 - rate)


def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """The module with its parameters multiplied."""
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(scale)
    return module


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """x with dimensions of 1 appended, up to target_dims (consistency_models' ``nn``, as is the next)."""
    return x.reshape(*x.shape, *[1] * (target_dims - x.ndim))


def append_zero(x: Tensor) -> Tensor:
    """[N] -> [N+1]."""
    return torch.cat([x, x.new_zeros(1)])


def normalization(channels: int) -> GroupNorm32:
    """The norm of every layer: 32 groups."""
    return GroupNorm32(32, channels)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000) -> Tensor:
    """[N] -> [N, dim]: cosines, then sines, of frequencies 1 to 1/max_period."""
    return _timestep_embedding(timesteps, dim, max_period)


def checkpoint(func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor], flag: bool) -> Any:
    """func(*inputs); with ``flag``, activations are computed again in the backward. ``params`` need not be named."""
    return torch_checkpoint(func, *inputs, use_reentrant=False) if flag else func(*inputs)
