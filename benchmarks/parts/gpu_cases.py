"""The ops at the sizes that ADM's networks have on a GPU, made on the device."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops import channel_moments, conv2d, group_norm_silu, normal, reverse_step
from fastdiff.ops._case import Case
from fastdiff.ops.channel_moments import eager as moments_eager
from fastdiff.ops.conv2d import eager as conv2d_eager
from fastdiff.ops.group_norm_silu import eager as group_norm_eager
from fastdiff.ops.reverse_step import eager as reverse_step_eager


def _normal(dtype: torch.dtype, device: str, *shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=device)).to(dtype)


def _image(dtype: torch.dtype, device: str, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    x = _normal(dtype, device, *shape)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _norm_inputs(dtype, device, *, shape, channels_last: bool, adaptive: bool) -> dict[str, Any]:
    n, c = shape[:2]
    kwargs = {"x": _image(dtype, device, shape, channels_last), "num_groups": 32}
    kwargs |= {
        "weight": 1 + _normal(dtype, device, c, scale=0.2),
        "bias": _normal(dtype, device, c, scale=0.2),
    }
    if adaptive:
        both = _normal(dtype, device, n, 2 * c, scale=0.3)
        kwargs["scale"], kwargs["shift"] = both.chunk(2, dim=1)
    return kwargs


def group_norm(*shape: int, channels_last: bool = True, adaptive: bool = False) -> Case:
    layout = "channels_last" if channels_last else "contiguous"
    leaves = ("x", "weight", "bias", *(("scale", "shift") if adaptive else ()))
    return Case(
        name=f"{'x'.join(map(str, shape))}-{layout}{'-adaptive' * adaptive}",
        op="group_norm_silu",
        fused=group_norm_silu,
        eager=group_norm_eager.group_norm_silu,
        inputs=functools.partial(_norm_inputs, shape=shape, channels_last=channels_last, adaptive=adaptive),
        differentiable=leaves,
        elements=2 * math.prod(shape),
    )


def moments(*shape: int) -> Case:
    return Case(
        name=f"{'x'.join(map(str, shape))}-channels_last",
        op="channel_moments",
        fused=channel_moments,
        eager=moments_eager.channel_moments,
        inputs=lambda dtype, device: {"x": _image(dtype, device, shape, True)},
        elements=math.prod(shape),
    )


def convolution(n: int, c: int, size: int, kernel: int = 3) -> Case:
    def inputs(dtype: torch.dtype, device: str) -> dict[str, Any]:
        weight = _normal(dtype, device, c, c, kernel, kernel, scale=1 / math.sqrt(c * kernel**2))
        x = _image(dtype, device, (n, c, size, size), True)
        return {"x": x, "weight": weight.contiguous(memory_format=torch.channels_last), "bias": None}

    return Case(
        name=f"{n}x{c}x{size}x{size}-{kernel}x{kernel}-channels_last",
        op="conv2d",
        fused=conv2d,
        eager=conv2d_eager.conv2d,
        inputs=inputs,
        elements=2 * n * c * size**2 + c * c * kernel**2,
        flops=2 * n * size**2 * c * c * kernel**2,
    )


def _step_inputs(dtype, device, *, shape, guidance: bool) -> dict[str, Any]:
    """The state is float32, whatever the model computes in."""
    n, c, *rest = shape
    row = (1.7, -1.4, 0.82, 0.15, -0.3, 0.2, 0.4, -2.4, -1.9, 1.0, 1.5, 0.0)
    kwargs = {
        "x": _normal(torch.float32, device, *shape),
        "model_output": _normal(dtype, device, n, 2 * c, *rest),
        "table": torch.tensor([row], device=device),
        "index": torch.zeros((), dtype=torch.int64, device=device),
        "seeds": torch.arange(n, device=device),
        "clip": True,
        "variance": "learned_range",
    }
    return kwargs | ({"uncond": _normal(dtype, device, n, 2 * c, *rest)} if guidance else {})


def step(*shape: int, guidance: bool = False) -> Case:
    size = math.prod(shape)
    return Case(
        name=f"{'x'.join(map(str, shape))}{'-guidance' * guidance}",
        op="reverse_step",
        fused=reverse_step,
        eager=reverse_step_eager.reverse_step,
        baseline=reverse_step_eager.with_randn,
        inputs=functools.partial(_step_inputs, shape=shape, guidance=guidance),
        elements=(3 + (4 if guidance else 2)) * size,
    )


def noise(*shape: int) -> Case:
    n, *rest = shape

    def randn(seeds: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
        return torch.randn(len(seeds), *shape, dtype=dtype, device=seeds.device)

    return Case(
        name="x".join(map(str, shape)),
        op="philox_normal",
        fused=normal,
        eager=lambda seeds, shape, dtype: normal(seeds.cpu(), shape, dtype=dtype).to(seeds.device),
        baseline=randn,
        inputs=lambda dtype, device: {
            "seeds": torch.arange(n, device=device),
            "shape": list(rest),
            "dtype": dtype,
        },
        elements=math.prod(shape),
    )


def cases(dry: bool) -> list[Case]:
    """With small ones first, so that a slice of a run sees every op."""
    if dry:
        small = [group_norm(2, 64, 8, 8), group_norm(2, 64, 8, 8, channels_last=False, adaptive=True)]
        return [*small, moments(2, 64, 8, 8), convolution(1, 32, 8), step(2, 3, 8, 8), noise(2, 3, 8, 8)]
    return [
        group_norm(1, 256, 64, 64),
        group_norm(32, 768, 16, 16, adaptive=True),
        group_norm(32, 1024, 8, 8, adaptive=True),
        group_norm(32, 192, 64, 64),
        group_norm(32, 192, 64, 64, channels_last=False),
        group_norm(8, 576, 32, 32, adaptive=True),
        group_norm(8, 256, 128, 128, adaptive=True),
        group_norm(4, 256, 256, 256),
        group_norm(1, 512, 256, 256),
        step(1, 3, 64, 64),
        step(32, 3, 64, 64),
        step(8, 3, 256, 256),
        step(8, 3, 256, 256, guidance=True),
        noise(32, 3, 256, 256),
        moments(8, 256, 64, 64),
        convolution(8, 256, 64),
        convolution(8, 512, 32),
        convolution(8, 512, 32, kernel=1),
    ]
