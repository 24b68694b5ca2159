"""How the operands of a step lie in memory: what every kernel asks before it takes them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

OPERANDS = ("x", "model", "uncond", "h1", "h2", "noise", "x_next", "x0")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides


def layout(t: Tensor | None) -> Layout | None:
    """What a launch depends on, but for the address."""
    return None if t is None else (t.shape, t.stride(), t.dtype)


@functools.lru_cache(maxsize=256)
def strides(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The strides of images, channels and pixels, and the channels. None if pixels, taken as one, have no stride."""
    pixel, step = 1, None
    for size, stride in zip(reversed(sizes[2:]), reversed(strides[2:]), strict=True):
        if size == 1:
            continue
        if step is None:
            pixel = step = stride
        elif stride != step:
            return None
        step *= size
    return strides[0], strides[1], pixel, sizes[1]


def why_not(
    x: Tensor,
    model_output: Tensor,
    uncond: Tensor | None,
    h1: Tensor | None,
    h2: Tensor | None,
    noise: Tensor | None,
) -> str | None:
    """Why no kernel takes these operands, or None."""
    named = {"x": x, "model_output": model_output, "uncond": uncond, "h1": h1, "h2": h2, "noise": noise}
    for name, t in named.items():
        if t is None:
            continue
        if t.dtype not in DTYPES:
            return f"{name} is {t.dtype}, not float32, bfloat16 or float16"
        if strides(t.shape, t.stride()) is None:
            return (
                f"{name} with shape {list(t.shape)} and strides {list(t.stride())} is neither contiguous"
                " nor channels_last"
            )
    return None
