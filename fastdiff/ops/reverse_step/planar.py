"""How an operand of a step lies in memory: what the kernel on Triton goes by, as csrc/torch/reverse_step.cpp does."""

from __future__ import annotations

import functools


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
