"""Halving and doubling the resolution. No hidden layout changes: channels_last in, channels_last out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nn.recompute import recomputable


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
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else None

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
