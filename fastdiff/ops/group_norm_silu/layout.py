"""How an image lies in memory, for the kernels of Triton; csrc/torch/group_norm_silu.cpp says it for the others."""

from __future__ import annotations

import functools
import math

CONTIGUOUS, CHANNELS_LAST = 0, 1


@functools.lru_cache(maxsize=256)
def layout(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """How each image lies in memory, or None if it has gaps or another order. Images may be apart."""
    if 0 in sizes:
        return CONTIGUOUS
    if sizes[0] > 1 and strides[0] < math.prod(sizes[1:]):
        return None
    if _is_dense(sizes[1:], strides[1:]):
        return CONTIGUOUS
    if _is_dense((*sizes[2:], sizes[1]), (*strides[2:], strides[1])):
        return CHANNELS_LAST
    return None


def _is_dense(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
