"""Block sizes of attention's Triton kernels, by head size, dtype, number of keys and a GPU's shared memory.

Chosen from what the compiler says (registers without spills, shared memory: docs/kernels/attention.md), not from time.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tile:
    """The queries and keys that meet in one step of a program, and how it is compiled."""

    queries: int
    keys: int
    warps: int
    stages: int  # steps of a loop whose loads are under way at once
    one_pass: bool = False  # the keys are all there are


# Heads of at most so many channels are held as tiles of these.
HEADS = {16: (16,), 32: (32,), 64: (64,), 96: (64, 32), 128: (128,), 192: (128, 64), 256: (256,)}
LARGEST_HEAD = max(HEADS)
LARGEST_TILE = 256  # rows or channels

# 227 KB, what a program may use on Hopper and on data-center Blackwell; every other GPU gets the small tiles.
LARGE_SHARED = 232448
SMALL_SHARED = 101376  # 99 KB, of compute capability 8.6, 8.9 and 12.0

_LARGE = {
    "forward": {
        16: Tile(128, 64, 4, 3),
        32: Tile(128, 64, 4, 3),
        64: Tile(128, 64, 4, 3),
        96: Tile(128, 64, 8, 2),
        128: Tile(128, 64, 8, 2),
        192: Tile(128, 64, 8, 2),
        256: Tile(128, 32, 8, 2),
    },
    "queries": {
        16: Tile(64, 64, 4, 3),
        32: Tile(64, 64, 4, 3),
        64: Tile(64, 64, 4, 3),
        96: Tile(64, 64, 4, 2),
        128: Tile(64, 64, 8, 2),
        192: Tile(64, 32, 8, 2),
        256: Tile(64, 32, 8, 2),
    },
    "keys": {
        16: Tile(64, 64, 4, 2),
        32: Tile(64, 64, 4, 2),
        64: Tile(64, 64, 4, 2),
        96: Tile(64, 64, 8, 2),
        128: Tile(64, 64, 8, 2),
        192: Tile(32, 64, 8, 2),
        256: Tile(32, 32, 8, 2),
    },
}
_SMALL = {
    "forward": {
        16: Tile(64, 64, 4, 3),
        32: Tile(128, 64, 4, 3),
        64: Tile(64, 64, 4, 3),
        96: Tile(64, 64, 4, 2),
        128: Tile(64, 32, 4, 2),
        192: Tile(32, 32, 4, 2),
        256: Tile(64, 32, 8, 2),
    },
    "queries": {
        16: Tile(64, 32, 4, 2),
        32: Tile(64, 64, 4, 2),
        64: Tile(64, 64, 4, 2),
        96: Tile(64, 32, 4, 2),
        128: Tile(32, 32, 4, 2),
        192: Tile(32, 32, 4, 2),
        256: Tile(32, 32, 8, 2),
    },
    "keys": {
        16: Tile(64, 64, 4, 2),
        32: Tile(64, 64, 4, 2),
        64: Tile(32, 64, 4, 2),
        96: Tile(16, 32, 8, 2),
        128: Tile(64, 64, 8, 2),
        192: Tile(32, 32, 8, 2),
        256: Tile(32, 32, 8, 2),
    },
}
# 16-bit tensors whose rows do not start at multiples of 16: nothing is copied to shared memory without passing through
# registers.
_UNALIGNED = {
    "forward": {head: Tile(64, 32, 4, 1) if head <= 64 else Tile(32, 32, 8, 1) for head in HEADS},
    "queries": {head: Tile(32, 32, 4, 1) if head <= 64 else Tile(32, 16, 8, 1) for head in HEADS},
    "keys": {head: Tile(32, 32, 4, 1) if head <= 64 else Tile(16, 32, 8, 1) for head in HEADS},
}
# float32 on every GPU: no tensor cores; the operands of a product stand in registers.
_FLOAT32 = {
    kernel: {head: Tile(queries, keys, 4 if head <= 128 else 8, 1) for head in HEADS}
    for kernel, queries, keys in (("forward", 32, 32), ("queries", 32, 16), ("keys", 16, 32))
}


def head_of(head_dim: int) -> int:
    """The smallest head of the tables that holds this many channels."""
    return next(size for size in HEADS if size >= head_dim)


def _tile(kernel: str, head: int, dtype: torch.dtype, keys: int, shared_bytes: int, aligned: bool) -> Tile:
    if dtype == torch.float32:
        return _FLOAT32[kernel][head]
    if not aligned:
        return _UNALIGNED[kernel][head]
    is_large = shared_bytes >= LARGE_SHARED
    if kernel == "forward" and keys <= 64:
        return Tile(64 if is_large or head <= 128 else 32, 64, 4, 1, one_pass=True)
    if kernel == "forward" and keys <= (256 if is_large else 128) and head <= 64:
        return Tile(64, 128 if keys <= 128 else 256, 8, 1, one_pass=True)
    return (_LARGE if is_large else _SMALL)[kernel][head]


def _channels(head: int, dtype: torch.dtype) -> tuple[tuple[int, int], ...]:
    """The tiles that a head is held as: (first, number) of each."""
    widths = (32,) * (head // 32) if dtype == torch.float32 and head > 32 else HEADS[head]
    return tuple(zip(itertools.accumulate(widths, initial=0), widths, strict=False))


@functools.lru_cache(maxsize=4096)
def plan(
    kernel: str, head_dim: int, dtype: torch.dtype, queries: int, keys: int, shared_bytes: int, aligned: bool
) -> tuple[int, dict[str, Any]]:
    """-> programs a head, and the kernel's constants. kernel: "forward", "queries" or "keys" (of the backward)."""
    head = head_of(head_dim)
    tile = _tile(kernel, head, dtype, keys, shared_bytes, aligned)
    length, block = (keys, tile.keys) if kernel == "keys" else (queries, tile.queries)
    constants = {
        "D": head_dim,
        "CHANNELS": _channels(head, dtype),
        "BLOCK_T": tile.queries,
        "BLOCK_S": tile.keys,
        "MASK_T": queries % tile.queries != 0,
        "MASK_S": keys % tile.keys != 0,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    if kernel == "forward":
        constants["ONE_PASS"] = tile.one_pass
    return -(-length // block), constants
