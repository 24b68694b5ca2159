"""Inputs that break one-pass variances."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fastdiff.ops._case import Case
from fastdiff.ops.channel_moments import channel_moments
from fastdiff.ops.channel_moments.eager import channel_moments as eager


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, ...],
    channels_last: bool = True,
    offset: float = 0.0,
    drift: float = 0.0,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=g) + offset + drift * torch.linspace(0, 1, shape[2])[:, None]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return {"x": x.to(device, dtype).to(memory_format=layout)}


def case(name: str, *shape: int, benchmark: bool = False, falls_back: bool = False, **options: Any) -> Case:
    return Case(
        name=name,
        op="channel_moments",
        fused=channel_moments,
        eager=eager,
        inputs=functools.partial(_inputs, shape=shape, **options),
        differentiable=("x",),
        elements=torch.Size(shape).numel(),
        flops=4 * torch.Size(shape).numel(),  # the mean 1, the variance 3
        benchmark=benchmark,
        falls_back=falls_back,
        keeps_layout=False,
    )


CASES = (
    case("plain", 2, 64, 8, 8),
    case("odd", 3, 37, 7, 5),
    case("one_pixel", 2, 40, 1, 1),
    case("many_pixels", 1, 24, 61, 53),
    case("offset", 2, 64, 16, 16, offset=100.0),
    case("drift", 1, 32, 40, 30, drift=50.0),
    case("contiguous", 2, 64, 8, 8, channels_last=False, falls_back=True),
    case("4x256x16x16", 4, 256, 16, 16, benchmark=True),
    case("4x256x32x32", 4, 256, 32, 32, benchmark=True),
)
