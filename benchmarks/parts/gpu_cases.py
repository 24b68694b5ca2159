"""The ops at the sizes that ADM's networks have on a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops import normal
from fastdiff.ops._case import Case
from fastdiff.ops.channel_moments import cases as channel_moments
from fastdiff.ops.conv2d import cases as conv2d
from fastdiff.ops.group_norm_silu import cases as group_norm_silu
from fastdiff.ops.reverse_step import cases as reverse_step


def group_norm(*shape: int, channels_last: bool = True, adaptive: bool = False) -> Case:
    layout = "channels_last" if channels_last else "contiguous"
    name = f"{_sizes(shape)}-{layout}{'-adaptive' * adaptive}"
    return group_norm_silu.case(name, *shape, channels_last=channels_last, adaptive=adaptive)


def moments(*shape: int) -> Case:
    made = channel_moments.case(f"{_sizes(shape)}-channels_last", *shape)
    return replace(made, differentiable=())


def convolution(n: int, c: int, size: int, kernel: int = 3) -> Case:
    name = f"{_sizes((n, c, size, size))}-{kernel}x{kernel}-channels_last"
    made = conv2d.case(name, n, c, c, size, size, k=kernel, bias=False)
    return replace(made, differentiable=())


def step(*shape: int, guidance: bool = False) -> Case:
    """The state is float32, whatever the model computes in."""
    options: dict[str, Any] = {"variance": "learned_range", "noise": "seeds", "clip": True}
    name = f"{_sizes(shape)}{'-guidance' * guidance}"
    made = reverse_step.case(name, shape=shape, guidance=guidance, **options)
    return replace(made, inputs=functools.partial(_with_float32_state, made.inputs))


def _with_float32_state(
    inputs: Callable[[torch.dtype, str], dict[str, Any]], dtype: torch.dtype, device: str
) -> dict[str, Any]:
    kwargs = inputs(dtype, device)
    return kwargs | {"x": kwargs["x"].float()}


def noise(*shape: int) -> Case:
    n, *rest = shape

    def randn(seeds: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
        return torch.randn(len(seeds), *shape, dtype=dtype, device=seeds.device)

    def inputs(dtype: torch.dtype, device: str) -> dict[str, Any]:
        return {"seeds": torch.arange(n, device=device), "shape": list(rest), "dtype": dtype}

    return Case(
        name=_sizes(shape),
        op="philox_normal",
        fused=normal,
        eager=lambda seeds, shape, dtype: normal(seeds.cpu(), shape, dtype=dtype).to(seeds.device),
        baseline=randn,
        inputs=inputs,
        elements=math.prod(shape),
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


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
