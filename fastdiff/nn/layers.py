"""The smallest layers: 3x3 convolution, group norm with its activation, resampling, timestep embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.backend import Backend, forced
from fastdiff.nn.recompute import recomputable
from fastdiff.ops import conv2d, group_norm_silu
from fastdiff.ops._library import DTYPES, multiplies_tiles

_LEAST_CHANNELS = 16  # with fewer, Winograd's transforms cost more than they save
# kernel, stride, padding, dilation, groups and mode of the convolution that has a kernel here
_GEOMETRY = (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"


class Embedding(nn.Embedding):
    """``torch.nn.Embedding``. On the meta device it has no initial values to draw, and draws none: PyTorch imports its
    compiler to do so, which takes longer than to load a model."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, of 3x3, stride 1 and padding 1 if nothing else is said; the state dict is the same.

    On the CPU, that convolution of channels_last images in float32, bfloat16 or float16 is
    :func:`fastdiff.ops.conv2d`, forward and backward; everything else is PyTorch's. So is bfloat16 on a processor with
    AMX, where a convolution without neighbours to fuse is 1.2 times as fast as here. Under autocast images and result
    are of its dtype, as with PyTorch, and the weight stays in its own.

    Args:
        in_channels, out_channels: Cin and Cout.
        further: what ``torch.nn.Conv2d`` takes after them, with its defaults: libraries of adapters make their small
            convolutions of the class that they find.
    """

    def __init__(self, in_channels: int, out_channels: int, *further: Any, **options: Any) -> None:
        if not further and not options:
            options = {"kernel_size": 3, "padding": 1}
        super().__init__(in_channels, out_channels, *further, **options)

    def forward(self, input: Tensor) -> Tensor:
        x, weight = input, self.weight  # read once: an adapter may compute it
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if not self._has_kernel(x, weight):
            return self._conv_forward(input, weight, self.bias)
        y = conv2d(x, weight, self.bias)
        assert isinstance(y, Tensor)  # without moments
        return y

    def _has_kernel(self, x: Tensor, weight: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and forced() in (None, Backend.CPU, Backend.REFERENCE)
            and x.dtype in DTYPES
            and not multiplies_tiles(x.dtype)
            and weight.dtype in (x.dtype, torch.float32)
            and min(weight.shape[:2]) >= _LEAST_CHANNELS
            and self._geometry() == _GEOMETRY
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.stride(1) == 1  # a single pixel is of either layout
        )

    def _geometry(self) -> tuple[Any, ...]:
        return self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode


class GroupNormSiLU(nn.Module):
    """SiLU(GroupNorm(x) (1 + scale) + shift) with learned weight and bias [C], as ``fastdiff.ops.group_norm_silu``.

    Args:
        num_channels: C, a multiple of num_groups.
        num_groups: 32 throughout ADM.
        silu: False for the norm of an attention block.
    """

    def __init__(
        self, num_channels: int, num_groups: int = 32, *, eps: float = 1e-5, silu: bool = True
    ) -> None:
        super().__init__()
        self.num_groups, self.eps, self.silu = num_groups, eps, silu
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    @recomputable
    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return group_norm_silu(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            scale=scale,
            shift=shift,
            eps=self.eps,
            silu=self.silu,
        )

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, num_groups={self.num_groups}, silu={self.silu}"


@recomputable
def upsample_nearest(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], every pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


@recomputable
def downsample_mean(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2], the mean of every 2x2 block."""
    return F.avg_pool2d(x, 2)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution unless ``conv`` is False. Key: ``conv``."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = upsample_nearest(x)
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, or the mean of 2x2 blocks if ``conv`` is False. Key: ``op``."""

    def __init__(self, channels: int, *, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


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
