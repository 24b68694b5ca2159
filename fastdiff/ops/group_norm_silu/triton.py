"""group_norm_silu on Triton: which tiles and launches a shape gets, and the calls. docs/kernels/gpu.md says why."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops.group_norm_silu import reference
from fastdiff.ops.group_norm_silu import triton_backward as backward
from fastdiff.ops.group_norm_silu import triton_forward as forward
from fastdiff.ops.group_norm_silu.layout import CHANNELS_LAST, layout
from fastdiff.ops.group_norm_silu.reference import Arguments, BackwardArguments

# Elements that a program holds at most, of all tensors that it reads: 32 a thread. Where programs go through chunks
# of larger images, a tile is a quarter: accumulators need room, and several programs share a multiprocessor.
_WHOLE = 16384
_SMALL = 1024  # elements that a program takes at least, if they are there
_MEMBERS = 512  # pairs of a group and a channel that a warp holds at most
_MOST_CHANNELS = 4096  # of a group
_MOST_CHUNKS = 128
_PROGRAMS = 4  # for each multiprocessor


class _Plan(NamedTuple):
    """How one shape is cut. Programs own `groups` whole groups (a block of channels), all pixels or a chunk of them."""

    groups: int
    channels: int  # of a tile: those of the groups, and then up to a power of two
    pixels: int  # of a tile
    blocks: int  # of an image
    warps: int
    chunks: int = 0  # 0: a program holds whole images
    tiles: int = 0  # of a chunk
    # Blocks of images that one launch takes: as many as stay in the L2 cache for the second read.
    units: int = 0
    pixel_stride: int = 1
    channel_stride: int = 1


def _block(size: int, groups: int, itemsize: int, last: bool, least: int, most: int) -> tuple[int, int]:
    """How many groups of `size` channels make a tile, and the tile's width.

    Well filled, and in channels_last so many channels that lanes access 16 bytes; narrow, but at least `least`.
    """
    choices = []
    for width in (1 << i for i in range(most.bit_length()) if size <= 1 << i <= most):
        for g in range(1, min(groups, width // size) + 1):
            access = math.gcd(g * size * itemsize, 16) if last else 16
            worth = g * size / width * {16: 1.0, 8: 0.9, 4: 0.8, 2: 0.6}[access]
            choices.append((worth, g, width))
    wide = [c for c in choices if c[1] * size >= least or c[1] == groups] or choices
    best = max(wide)[0]
    width = min(w for worth, _, w in wide if worth >= 0.9 * best)
    return max(c for c in wide if c[2] == width)[1:]


@functools.lru_cache(maxsize=1024)
def _plan(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    num_groups: int,
    device: torch.device,
    tensors: int,
) -> _Plan:
    """`tensors` of x's size are read: 1 in the forward, 2 in the backward."""
    n, c = sizes[:2]
    pixels, size = math.prod(sizes[2:]), c // num_groups
    last = layout(sizes, strides) == CHANNELS_LAST
    steps = (c, 1) if last else (1, pixels)
    sector, line = 32 // dtype.itemsize, 128 // dtype.itemsize
    rows = triton.next_power_of_2(pixels)
    whole = _WHOLE // tensors
    most = whole // rows
    if triton.next_power_of_2(size) <= most:
        least = min(most, max(sector if last else 1, _SMALL // rows))
        most = min(most, 2 * triton.next_power_of_2(max(size, least)))  # many programs rather than wide ones
        groups, width = _block(size, num_groups, dtype.itemsize, last, least, most)
        if not last or groups * size >= sector or groups == num_groups:
            # The matrix of which group has which channel, which may be larger than a small tile.
            members = triton.next_power_of_2(groups) * width
            warps = min(16, max(1, rows * width // (whole // 16), members // _MEMBERS))
            return _Plan(groups, width, rows, triton.cdiv(num_groups, groups), warps, 0, 0, 0, *steps)
    most = max(256, triton.next_power_of_2(size))
    groups, width = _block(size, num_groups, dtype.itemsize, last, line, most)
    rows = max(1, min(rows, whole // 4 // width))
    blocks, tiles = triton.cdiv(num_groups, groups), triton.cdiv(pixels, rows)
    gpu = _triton.device_of(device)
    fitting = gpu.l2_bytes // 3 // (pixels * groups * size * dtype.itemsize * tensors)
    units = min(n * blocks, max(1, fitting), _triton.MAX_GRID_Y)
    chunks = max(1, min(_PROGRAMS * gpu.multiprocessors // units, tiles, _MOST_CHUNKS))
    a_chunk = triton.cdiv(tiles, chunks)
    return _Plan(groups, width, rows, blocks, 8, triton.cdiv(tiles, a_chunk), a_chunk, units, *steps)


def _prepared(parameters: tuple[Tensor | None, ...]) -> tuple[tuple[Tensor | None, ...], tuple[int, int]]:
    """Parameters whose channels are neighbours, and the strides between images of scale and shift."""
    kept = tuple(p if p is None or p.stride(-1) == 1 else p.contiguous() for p in parameters)
    scale, shift = kept[2:]
    return kept, (0 if scale is None else scale.stride(0), 0 if shift is None else shift.stride(0))


def _forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x, num_groups, eps, silu = given.x, given.num_groups, given.eps, given.silu
    if x.numel() == 0:
        return reference.group_norm_silu(given)
    n, c = x.shape[:2]
    p = _plan(x.shape, x.stride(), x.dtype, num_groups, x.device, 1)
    pixels, device = x.numel() // (n * c), x.device
    y = torch.empty_like(x)
    mean = x.new_empty((n, num_groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    parameters, rows = _prepared(given.parameters())
    tile = {"GROUP": c // num_groups, "GROUPS": p.groups, "CHANNELS": p.channels, "PIXELS": p.pixels}
    strides = x.stride(0), c * pixels, p.pixel_stride, p.channel_stride
    tensors = x, y, mean, rstd, *parameters
    if not p.chunks:
        _triton.launch(
            forward.group_norm_silu_forward_kernel, (p.blocks, n), device, *tensors, *strides, *rows,
            pixels, num_groups, eps, SILU=silu, **tile, num_warps=p.warps,
        )  # fmt: skip
        return y, mean, rstd
    parts = x.new_empty((2, n * p.blocks, p.chunks, p.groups), dtype=torch.float32).unbind()
    for first in range(0, n * p.blocks, p.units):
        grid = p.chunks, min(p.units, n * p.blocks - first)
        where = pixels, num_groups, p.blocks, first, p.tiles
        _triton.launch(
            forward.group_norm_silu_forward_moments_kernel, grid, device, x, *parts,
            x.stride(0), p.pixel_stride, p.channel_stride, *where, **tile, num_warps=p.warps,
        )  # fmt: skip
        _triton.launch(
            forward.group_norm_silu_forward_apply_kernel, grid, device, *tensors, *parts, *strides, *rows,
            *where, eps, SILU=silu, **tile, CHUNKS=triton.next_power_of_2(p.chunks), num_warps=p.warps,
        )  # fmt: skip
    return y, mean, rstd


def _backward(given: BackwardArguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad, x, num_groups, silu = given.grad, given.x, given.num_groups, given.silu
    if x.numel() == 0:
        return reference.group_norm_silu_backward(given)
    n, c = x.shape[:2]
    p = _plan(x.shape, x.stride(), x.dtype, num_groups, x.device, 2)
    pixels, device = x.numel() // (n * c), x.device
    dx = torch.empty_like(x)
    if grad.stride() != dx.stride() or grad.dtype != x.dtype:
        grad = torch.empty_like(dx).copy_(grad)
    a_sums = x.new_empty((n, c), dtype=torch.float32)
    b_sums, dscale = torch.empty_like(a_sums), torch.empty_like(a_sums)
    dweight = x.new_empty(c, dtype=torch.float32)
    dbias = torch.empty_like(dweight)
    parameters, rows = _prepared(given.parameters())
    tile = {"GROUP": c // num_groups, "GROUPS": p.groups, "CHANNELS": p.channels, "PIXELS": p.pixels}
    strides = x.stride(0), c * pixels, p.pixel_stride, p.channel_stride
    saved = given.mean.contiguous(), given.rstd.contiguous(), *parameters
    if p.chunks:
        parts = x.new_empty((2, n * p.blocks, p.chunks, p.channels), dtype=torch.float32).unbind()
        for first in range(0, n * p.blocks, p.units):
            grid = p.chunks, min(p.units, n * p.blocks - first)
            where = pixels, num_groups, p.blocks, first, p.tiles
            _triton.launch(
                backward.group_norm_silu_backward_sums_kernel, grid, device, grad, x, *saved, *parts, *strides,
                *rows, *where, SILU=silu, **tile, num_warps=p.warps,
            )  # fmt: skip
            _triton.launch(
                backward.group_norm_silu_backward_apply_kernel, grid, device, grad, x, dx, *saved, *parts,
                a_sums, b_sums, *strides, *rows, *where, SILU=silu, **tile,
                CHUNKS=triton.next_power_of_2(p.chunks), num_warps=p.warps,
            )  # fmt: skip
    else:
        _triton.launch(
            backward.group_norm_silu_backward_kernel, (p.blocks, n), device, grad, x, dx, *saved, a_sums, b_sums,
            *strides, *rows, pixels, num_groups, SILU=silu, **tile, num_warps=p.warps,
        )  # fmt: skip
    images, channels = 16, 64
    _triton.launch(
        backward.group_norm_silu_backward_affine_kernel, (triton.cdiv(c, channels),), device, a_sums, b_sums,
        *parameters[:3], dweight, dbias, dscale, n, c, rows[0], IMAGES=images, CHANNELS=channels, num_warps=4,
    )  # fmt: skip
    if c // num_groups * pixels == 1:  # a group of one value is its own mean: what dx would hold is rounding
        dx.zero_()
    return dx, dweight, dbias, dscale, a_sums


def _supports(given: Arguments | BackwardArguments) -> str | None:
    x, num_groups = given.x, given.num_groups
    names = ("weight", "bias", "scale", "shift")
    if reason := _triton.why_not(x, **dict(zip(names, given.parameters(), strict=True))):
        return reason
    if layout(x.shape, x.stride()) is None:
        return f"x with shape {list(x.shape)} and strides {list(x.stride())} is neither contiguous nor channels_last"
    if x.shape[1] // num_groups > _MOST_CHANNELS:
        return f"groups of {x.shape[1] // num_groups} channels, more than {_MOST_CHANNELS}"
    if math.prod(x.shape[2:]) >= 2**30 or x.shape[0] > _triton.MAX_GRID_Y:
        return f"too many pixels or images: {list(x.shape)}"
    return None


def _calls() -> None:
    """The shapes of ADM, C / 32 from 2 to 64: each in one layout or both, and in the dtypes that networks have."""
    for c, size, last, dtype in _SHAPES:
        x = torch.empty((2, c, size, size), dtype=dtype, device="meta")
        x = x.to(memory_format=torch.channels_last) if last else x
        weight, rows = torch.empty(c, device="meta"), torch.empty((2, 2 * c), dtype=dtype, device="meta")
        scale, shift = rows.chunk(2, dim=1) if size <= 64 else (None, None)
        _, mean, rstd = _forward(Arguments(x, 32, weight, weight, scale, shift))
        _backward(BackwardArguments(x, x, mean, rstd, 32, weight, weight, scale, shift, silu=True))


_PER_GROUP = (2, 4, 6, 8, 12, 16, 18, 24, 30, 32, 36, 40, 42, 48, 56, 64)
_SHAPES = [(32 * d, 8 if d > 16 else 16, True, torch.bfloat16) for d in _PER_GROUP]
_SHAPES += [
    (32 * d, size, last, dtype)
    for d, size, last, dtype in (
        (8, 256, True, torch.bfloat16),
        (8, 256, False, torch.bfloat16),
        (6, 64, True, torch.bfloat16),
        (6, 64, False, torch.float32),
        (18, 32, True, torch.float16),
        (36, 32, False, torch.bfloat16),
        (8, 32, True, torch.float32),
        (8, 32, False, torch.bfloat16),
        (18, 16, False, torch.float32),
        (36, 8, False, torch.float16),
        (2, 1, False, torch.float32),  # one pixel: a number that is 1 is a constant to Triton
    )
]

KERNELS = {
    "group_norm_silu": Kernel(_forward, _supports),
    "group_norm_silu_backward": Kernel(_backward, _supports),
}
CONFIGURATIONS = _triton.Recording(_calls)
