"""group_norm_silu on Triton: which tiles and launches a shape gets, and the calls. docs/kernels/gpu.md says why."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops.group_norm_silu import reference
from fastdiff.ops.group_norm_silu import triton_backward as backward
from fastdiff.ops.group_norm_silu import triton_forward as forward
from fastdiff.ops.group_norm_silu.cpu import _CHANNELS_LAST, _layout

_WHOLE_FORWARD, _WHOLE_BACKWARD = 16384, 8192  # elements that a program holds: 32 a thread, twice in the backward
_TILE = 4096  # elements of a tile where programs go through chunks: 16 a thread
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
    units: int = 0  # blocks of images that one launch takes: as many as stay in the L2 cache for the second read
    pixel_stride: int = 1
    channel_stride: int = 1


def _block(size: int, groups: int, least: int, most: int) -> tuple[int, int]:
    """How many groups of `size` channels make a tile, and its width: narrow, but at least `least`, and well filled."""
    widths = [1 << i for i in range(most.bit_length()) if size <= 1 << i <= most]
    choices = [(min(groups, w // size), w) for w in widths]
    filled = [(g, w) for g, w in choices if g * size >= 0.84 * w and (g * size >= least or g == groups)]
    return filled[0] if filled else max(choices, key=lambda c: (c[0] * size / c[1], c[1]))


@functools.lru_cache(maxsize=1024)
def _plan(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    num_groups: int,
    device: torch.device,
    whole: int,
) -> _Plan:
    n, c = sizes[:2]
    pixels, size = math.prod(sizes[2:]), c // num_groups
    last = _layout(sizes, strides) == _CHANNELS_LAST
    steps = (c, 1) if last else (1, pixels)
    sector, line = 32 // dtype.itemsize, 128 // dtype.itemsize
    rows = triton.next_power_of_2(pixels)
    most = whole // rows
    if triton.next_power_of_2(size) <= most:
        groups, width = _block(size, num_groups, sector if last else 1, most)
        if not last or groups * size >= sector or groups == num_groups:
            warps = min(16, max(1, rows * width // (whole // 16)))
            return _Plan(groups, width, rows, triton.cdiv(num_groups, groups), warps, 0, 0, 0, *steps)
    groups, width = _block(size, num_groups, line, max(128, triton.next_power_of_2(size)))
    rows = max(1, min(rows, _TILE // width))
    blocks, tiles = triton.cdiv(num_groups, groups), triton.cdiv(pixels, rows)
    gpu = _triton.device_of(device)
    fitting = gpu.l2_bytes // 3 // (pixels * groups * size * dtype.itemsize)
    units = min(n * blocks, max(1, fitting), _triton.MAX_GRID_Y)
    chunks = max(1, min(_PROGRAMS * gpu.multiprocessors // units, tiles, _MOST_CHUNKS))
    a_chunk = triton.cdiv(tiles, chunks)
    return _Plan(groups, width, rows, blocks, 8, triton.cdiv(tiles, a_chunk), a_chunk, units, *steps)


def _prepared(parameters: tuple[Tensor | None, ...]) -> tuple[tuple[Tensor | None, ...], tuple[int, int]]:
    """Parameters whose channels are neighbours, and the strides between images of scale and shift."""
    kept = tuple(p if p is None or p.stride(-1) == 1 else p.contiguous() for p in parameters)
    scale, shift = kept[2:]
    return kept, (0 if scale is None else scale.stride(0), 0 if shift is None else shift.stride(0))


def _forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return reference.group_norm_silu(x, num_groups, weight, bias, scale, shift, eps, silu)
    n, c = x.shape[:2]
    p = _plan(x.shape, x.stride(), x.dtype, num_groups, x.device, _WHOLE_FORWARD)
    pixels, device = x.numel() // (n * c), x.device
    y = torch.empty_like(x)
    mean, rstd = x.new_empty((2, n, num_groups), dtype=torch.float32).unbind()
    parameters, rows = _prepared((weight, bias, scale, shift))
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


def _backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return reference.group_norm_silu_backward(
            grad, x, mean, rstd, num_groups, weight, bias, scale, shift, silu
        )
    n, c = x.shape[:2]
    p = _plan(x.shape, x.stride(), x.dtype, num_groups, x.device, _WHOLE_BACKWARD)
    pixels, device = x.numel() // (n * c), x.device
    dx = torch.empty_like(x)
    if grad.stride() != dx.stride() or grad.dtype != x.dtype:
        grad = torch.empty_like(dx).copy_(grad)
    sums = a_sums, b_sums, dscale = x.new_empty((3, n, c), dtype=torch.float32).unbind()
    dweight, dbias = x.new_empty((2, c), dtype=torch.float32).unbind()
    parameters, rows = _prepared((weight, bias, scale, shift))
    tile = {"GROUP": c // num_groups, "GROUPS": p.groups, "CHANNELS": p.channels, "PIXELS": p.pixels}
    strides = x.stride(0), c * pixels, p.pixel_stride, p.channel_stride
    saved = mean.contiguous(), rstd.contiguous(), *parameters
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
                *sums[:2], *strides, *rows, *where, SILU=silu, **tile,
                CHUNKS=triton.next_power_of_2(p.chunks), num_warps=p.warps,
            )  # fmt: skip
    else:
        _triton.launch(
            backward.group_norm_silu_backward_kernel, (p.blocks, n), device, grad, x, dx, *saved, *sums[:2],
            *strides, *rows, pixels, num_groups, SILU=silu, **tile, num_warps=p.warps,
        )  # fmt: skip
    images, channels = 16, 64
    _triton.launch(
        backward.group_norm_silu_backward_affine_kernel, (triton.cdiv(c, channels),), device, a_sums, b_sums,
        *parameters[:3], dweight, dbias, dscale, n, c, rows[0], IMAGES=images, CHANNELS=channels, num_warps=4,
    )  # fmt: skip
    return dx, dweight, dbias, dscale, a_sums


def _supports(x: Tensor, num_groups: int, *parameters: Tensor | None) -> str | None:
    names = ("weight", "bias", "scale", "shift")
    if reason := _triton.why_not(x, **dict(zip(names, parameters, strict=True))):
        return reason
    if _layout(x.shape, x.stride()) is None:
        return f"x with shape {list(x.shape)} and strides {list(x.stride())} is neither contiguous nor channels_last"
    if x.shape[1] // num_groups > _MOST_CHANNELS:
        return f"groups of {x.shape[1] // num_groups} channels, more than {_MOST_CHANNELS}"
    if math.prod(x.shape[2:]) >= 2**30 or x.shape[0] > _triton.MAX_GRID_Y:
        return f"too many pixels or images: {list(x.shape)}"
    return None


def _forward_supports(x, num_groups, weight, bias, scale, shift, eps, silu) -> str | None:
    return _supports(x, num_groups, weight, bias, scale, shift)


def _backward_supports(grad, x, mean, rstd, num_groups, weight, bias, scale, shift, silu) -> str | None:
    return _supports(x, num_groups, weight, bias, scale, shift)


KERNELS = {
    "group_norm_silu": Kernel(_forward, _forward_supports),
    "group_norm_silu_backward": Kernel(_backward, _backward_supports),
}
