"""The partition of conv2d for more threads than this machine has cores, worked out rather than timed."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import fastdiff.ops  # noqa: F401  (registers the operators)

# N, Cin, Cout, H, W of ADM-class networks
SHAPES = {
    "ddpm-cifar10-32x32": (4, 128, 128, 32, 32),
    "ddpm-cifar10-16x16": (4, 256, 256, 16, 16),
    "ddpm-cifar10-8x8": (4, 256, 256, 8, 8),
    "ddpm-cifar10-32x32-alone": (1, 128, 128, 32, 32),
    "adm-64-64x64-alone": (1, 192, 192, 64, 64),
    "adm-256-256x256-alone": (1, 256, 256, 256, 256),
}
# Transforming a panel's weights takes as long as so many of its tiles (csrc/torch/conv2d.cpp: tile_of).
WEIGHTS = 10


class Plan(NamedTuple):
    """How a call is divided (csrc/common/conv2d.h: struct Plan), and its tiles' height and width."""

    threads: int
    share: int
    pieces: int
    parts: int
    tile_h: int
    tile_w: int


def plan(n: int, channels: int, out_channels: int, h: int, w: int, *, threads: int) -> Plan:
    """The division that a 3x3 call of this shape would get with so many threads, whether or not they exist."""
    return Plan(*torch.ops.fastdiff._conv2d_plan(n, channels, out_channels, h, w, 3, threads, 0))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _longest(shape: tuple[int, int, int, int, int], p: Plan) -> int:
    """Work of the thread that has most, in tiles times panels; threads take their items in contiguous ranges."""
    n, _, out_channels, h, w = shape
    rows, row = n * _ceil(h, p.tile_h), _ceil(w, p.tile_w)
    panels = _ceil(out_channels, torch.ops.fastdiff._conv2d_panel())
    tiles = _ceil(rows, p.pieces) * row  # of the largest piece
    if p.share:
        items = _ceil(panels * p.parts, p.threads)
        return p.pieces * items * (_ceil(tiles, p.parts) + WEIGHTS)
    return _ceil(p.pieces, p.threads) * panels * (tiles + WEIGHTS)


def _speedup(shape: tuple[int, int, int, int, int], threads: int) -> float:
    return _longest(shape, plan(*shape, threads=1)) / _longest(shape, plan(*shape, threads=threads))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_work_for_many_threads(shape: tuple[int, int, int, int, int]) -> None:
    found = {threads: _speedup(shape, threads) for threads in (1, 2, 4, 8, 16, 32, 64)}
    print("  ".join(f"{threads}: {speedup:.1f}x" for threads, speedup in found.items()))
    assert list(found.values()) == sorted(found.values()), "more threads never take longer"
    assert found[2] > 1.6
    assert found[4] > 2.8
    assert found[16] > 6


def test_few_multiply_adds_wake_no_one() -> None:
    assert plan(1, 8, 8, 4, 4, threads=64).threads == 1


def test_images_with_tiles_enough_are_divided_and_others_shared() -> None:
    assert not plan(4, 256, 256, 16, 16, threads=2).share
    assert plan(4, 256, 256, 8, 8, threads=2).share
    assert plan(1, 256, 256, 8, 8, threads=8).parts >= 1
