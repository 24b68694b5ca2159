"""conv2d on the compiled CPU library: tensors become pointers and sizes, and a tile is chosen."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel

_CODES = _native.DTYPE_CODES
_TILES = {"f2x2": (2, 2), "f2x4": (2, 4), "f4x4": (4, 4)}


class _Args(ctypes.Structure):
    """csrc/cpu/conv2d.h: struct Args."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "more", "weight", "bias", "image_bias", "affine", "residual", "y", "moments")
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("n", "h", "w", "channels", "more_channels", "out_channels"),
                *("image_stride", "more_stride", "bias_stride", "taps", "tile_h", "tile_w"),
                *("upsample", "silu", "dtype", "weight_dtype", "threads"),
            )
        ),
    ]


class _PackArgs(ctypes.Structure):
    """csrc/cpu/conv2d_pack.cpp: struct PackArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "packed")),
        *((name, ctypes.c_int64) for name in ("out_channels", "channels", "taps")),
        ("strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_int64) for name in ("bytes", "threads")),
    ]


class _WeightArgs(ctypes.Structure):
    """csrc/cpu/conv2d_weight_backward.cpp: struct WeightArgs."""

    _fields_ = [
        ("input", _Args),
        *((name, ctypes.c_void_p) for name in ("grad", "weight", "bias")),
        ("strides", ctypes.c_int64 * 4),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("conv2d", _Args)


@functools.cache
def _pack_function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("conv2d_pack", _PackArgs)


@functools.cache
def _weight_function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("conv2d_weight_backward", _WeightArgs)


@functools.cache
def panel() -> int:
    """Output channels that the kernel takes at a time: two vectors."""
    function = _native.library().fastdiff_conv2d_panel
    function.restype = ctypes.c_int64
    return function()


def _packed_size(weight: Tensor) -> int:
    out_channels, channels, taps, _ = weight.shape
    return -(-out_channels // panel()) * panel() * channels * taps * taps


def pack(weight: Tensor) -> Tensor:
    """[Cout, Cin, k, k] of any strides -> one dimension, Cout rounded up to whole panels."""
    out_channels, channels, taps, _ = weight.shape
    packed = torch.empty(_packed_size(weight), dtype=weight.dtype)
    strides = (ctypes.c_int64 * 4)(*weight.stride())
    threads = torch.get_num_threads()
    _pack_function()(
        _PackArgs(
            weight.data_ptr(),
            packed.data_ptr(),
            out_channels,
            channels,
            taps,
            strides,
            weight.element_size(),
            threads,
        )
    )
    return packed


@functools.lru_cache(maxsize=256)
def tile_of(n: int, h: int, w: int, algorithm: str) -> tuple[int, int]:
    """Outputs of a tile, height and width, that make the product cheapest.

    Measured: the time of a tile size is in proportion to its points times the number of tiles, where fewer than four
    tiles take as long as four (their sums are too few to hide a multiply-add's latency) and transforming the weights
    takes as long as ten (docs/kernels/conv2d.md).
    """
    if algorithm != "auto":
        return _TILES[algorithm]

    def cost(tile: tuple[int, int]) -> int:
        tiles = n * -(-h // tile[0]) * -(-w // tile[1])
        return (tile[0] + 2) * (tile[1] + 2) * (max(tiles, 4) + 10)

    return min(_TILES.values(), key=cost)


class Plan(NamedTuple):
    """How a call is divided (csrc/cpu/conv2d.cpp: struct Plan)."""

    threads: int
    share: int
    pieces: int
    parts: int


def plan(
    n: int,
    channels: int,
    out_channels: int,
    h: int,
    w: int,
    *,
    taps: int = 3,
    threads: int,
    algorithm: str = "auto",
) -> Plan:
    """The division that a call of this shape would get with so many threads, whether or not they exist."""
    args = _Args(n=n, h=h, w=w, channels=channels, out_channels=out_channels, taps=taps, threads=threads)
    args.tile_h, args.tile_w = tile_of(n, h, w, algorithm) if taps == 3 else (1, 1)
    values = (ctypes.c_int64 * len(Plan._fields))()
    _native.library().fastdiff_conv2d_plan(ctypes.byref(args), values)
    return Plan(*values)


def _why_not_input(x: Tensor, more: Tensor | None) -> str | None:
    if x.dtype not in _CODES:
        return f"{x.dtype} is not among float32, bfloat16, float16"
    if 0 in x.shape[1:] or (more is not None and more.shape[1] == 0):
        return "the input has no pixels or no channels"
    for tensor in (x, more):
        if tensor is not None and (reason := _native.why_not_channels_last(tensor)):
            return reason
    if more is not None and (more.dtype != x.dtype or x.shape[1] % 16):
        return "channels can only stand beside others of their dtype, behind a multiple of 16"
    return None


def _supports(
    x, more, weight, bias, affine, silu, upsample, image_bias, residual, moments, packed, algorithm
) -> str | None:
    if reason := _why_not_input(x, more):
        return reason
    if residual is not None and residual.dtype != x.dtype:
        return f"residual is {residual.dtype}, x is {x.dtype}"
    if packed is not None and (packed.dtype not in _CODES or packed.shape != (_packed_size(weight),)):
        return f"packed {list(packed.shape)} is not a packed weight of shape {list(weight.shape)}"
    return None


def _address(p: Tensor | None, kept: list[Tensor]) -> int | None:
    """Of a small parameter in float32, as the kernel reads it; what had to be copied is kept for the call."""
    if p is None:
        return None
    if p.dtype is not torch.float32 or not p.is_contiguous():
        p = p.float().contiguous()
        kept.append(p)
    return p.data_ptr()


def _run(
    x: Tensor,
    more: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    affine: Tensor | None,
    silu: bool,
    upsample: bool,
    image_bias: Tensor | None,
    residual: Tensor | None,
    moments: bool,
    packed: Tensor | None,
    algorithm: str,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    h, w = (2 * h, 2 * w) if upsample else (h, w)
    out_channels, _, taps, _ = weight.shape
    y = torch.empty((n, out_channels, h, w), dtype=x.dtype, memory_format=torch.channels_last)
    statistics = torch.empty((n, out_channels, 2) if moments else (0,))
    packed = pack(weight) if packed is None else packed
    kept: list[Tensor] = []
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    stride, inside = 0, 0
    if more is not None:
        stride, inside = more.stride(0), more.shape[1]
    if image_bias is not None and image_bias.stride(1) != 1:
        image_bias = image_bias.contiguous()
    if image_bias is not None and image_bias.dtype is not torch.float32:
        image_bias = image_bias.float()
    tile = tile_of(n, h, w, algorithm) if taps == 3 else (1, 1)
    _function()(
        _Args(
            x.data_ptr(),
            None if more is None else more.data_ptr(),
            packed.data_ptr(),
            _address(bias, kept),
            None if image_bias is None else image_bias.data_ptr(),
            _address(affine, kept),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            statistics.data_ptr() if moments else None,
            *(n, h, w, c, inside, out_channels),
            *(x.stride(0), stride, 0 if image_bias is None else image_bias.stride(0), taps, *tile),
            *(upsample, silu, _CODES[x.dtype], _CODES[packed.dtype], torch.get_num_threads()),
        )
    )
    return y, statistics


def _supports_weight(grad, x, more, weight, affine, silu, upsample, bias) -> str | None:
    if weight.shape[2] != 3:
        return f"the weight's gradient is for 3x3, not {weight.shape[2]}x{weight.shape[3]}"
    if grad.dtype != x.dtype or not grad.is_contiguous(memory_format=torch.channels_last):
        return f"grad is {grad.dtype} of strides {list(grad.stride())}: not channels_last in x's dtype"
    return _why_not_input(x, more)


def _run_weight(
    grad: Tensor,
    x: Tensor,
    more: Tensor | None,
    weight: Tensor,
    affine: Tensor | None,
    silu: bool,
    upsample: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    n, out_channels, h, w = grad.shape
    dweight = torch.empty_like(weight, dtype=torch.float32)
    dbias = torch.empty((out_channels,) if bias else (0,))
    kept: list[Tensor] = []
    args = _WeightArgs(
        grad=grad.data_ptr(), weight=dweight.data_ptr(), bias=dbias.data_ptr() if bias else None
    )
    args.strides[:] = dweight.stride()
    inner = args.input
    inner.x, inner.affine = x.data_ptr(), _address(affine, kept)
    inner.n, inner.h, inner.w, inner.channels, inner.out_channels = n, h, w, x.shape[1], out_channels
    inner.image_stride, inner.taps = x.stride(0), 3
    if more is not None:
        inner.more, inner.more_channels, inner.more_stride = more.data_ptr(), more.shape[1], more.stride(0)
    inner.tile_h = inner.tile_w = 4
    inner.upsample, inner.silu, inner.dtype = upsample, silu, _CODES[x.dtype]
    inner.threads = torch.get_num_threads()
    if n:
        _weight_function()(args)
        return dweight, dbias
    return dweight.zero_(), dbias.zero_()


KERNELS = {"conv2d": Kernel(_run, _supports), "conv2d_weight_backward": Kernel(_run_weight, _supports_weight)}
