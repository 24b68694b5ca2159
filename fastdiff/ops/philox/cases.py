"""Counts that end within a block, a vector and a chunk; seeds with their top bit set; the ends of the counter."""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.ops._case import Case
from fastdiff.ops.philox import normal, random_bits, reference

_SEEDS = (0, 1, -1, -(2**63), 0x0123456789ABCDEF)


def _seeds(count: int, device: str) -> torch.Tensor:
    return torch.tensor(_SEEDS[:count], dtype=torch.int64, device=device)


def _normal(name: str, shape: tuple[int, ...], *, samples: int = len(_SEEDS), **options: Any) -> Case:
    def inputs(dtype: torch.dtype, device: str) -> dict[str, Any]:
        return {"seeds": _seeds(samples, device), "shape": shape, "dtype": dtype, **options}

    return Case(name=name, op="philox_normal", fused=normal, eager=reference.normal, inputs=inputs)


def _bits(name: str, count: int, *, samples: int = len(_SEEDS), **options: Any) -> Case:
    def inputs(dtype: torch.dtype, device: str) -> dict[str, Any]:
        return {"seeds": _seeds(samples, device), "count": count, **options}

    return Case(name=name, op="philox_bits", fused=random_bits, eager=reference.random_bits, inputs=inputs)


CASES = (
    _normal("image", (3, 32, 32), step=17),
    _normal("odd", (3, 7, 5), step=2**32 - 1, stream=2**32 - 1),
    _normal("one-element", (1,)),
    _normal("more-than-a-chunk", (4099,), samples=2, stream=1),
    _normal("no-element", (3, 0)),
    _normal("no-sample", (3, 4), samples=0),
    _bits("whole-blocks", 64, step=3),
    _bits("odd", 4099, step=2**32 - 1, stream=2**32 - 1),
    _bits("carry", 101, first_block=2**32 - 3),
    _bits("wrap", 101, first_block=-5),
    _bits("no-word", 0),
    _bits("no-sample", 5, samples=0),
)
