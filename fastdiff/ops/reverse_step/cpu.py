"""reverse_step on the compiled CPU library: tensors become pointers and strides."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel
from fastdiff.ops.reverse_step import VARIANCES
from fastdiff.ops.reverse_step.reference import check_index

_CODES = _native.DTYPE_CODES
_VARIANCES = {name: code for code, name in enumerate(VARIANCES)}
_OPERANDS = ("x", "model", "uncond", "h1", "h2", "noise", "x_next", "x0")
_PLANAR = ("image_stride", "channel_stride", "pixel_stride", "channels", "dtype")
_ABSENT = (None, 0, 0, 0, 0, 0)


class _Args(ctypes.Structure):
    """csrc/cpu/reverse_step.cpp: struct Args; an operand is a struct Planar (csrc/cpu/planes.h)."""

    _fields_ = [
        *(
            (f"{operand}_{name}", ctypes.c_void_p if name == "data" else ctypes.c_int64)
            for operand in _OPERANDS
            for name in ("data", *_PLANAR)
        ),
        *((name, ctypes.c_void_p) for name in ("row", "seeds", "nonfinite")),
        *((name, ctypes.c_int64) for name in ("row_is_double", "seed_stride")),
        *((name, ctypes.c_int64) for name in ("images", "channels", "pixels")),
        *((name, ctypes.c_int64) for name in ("variance", "clip", "threads")),
        *((name, ctypes.c_uint32) for name in ("step", "stream")),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("reverse_step", _Args)


@functools.lru_cache(maxsize=256)
def _pixel_stride(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The distance of consecutive pixels, the trailing dimensions taken as one; None if it varies."""
    pixel, step = 1, None
    for size, stride in zip(reversed(sizes[2:]), reversed(strides[2:]), strict=True):
        if size == 1:
            continue
        if step is None:
            pixel = step = stride
        elif stride != step:
            return None
        step *= size
    return pixel


def _planar(t: Tensor | None) -> tuple[int | None, ...]:
    """Fields of a struct Planar. Keep the tensor alive until the call returns."""
    if t is None:
        return _ABSENT
    shape, strides = t.shape, t.stride()
    pixel = _pixel_stride(shape, strides)
    return t.data_ptr(), strides[0], strides[1], pixel, shape[1], _CODES[t.dtype]


def _supports(
    x, model_output, table, index, uncond, h1, h2, noise, seeds, stream, clip, variance
) -> str | None:
    named = {"x": x, "model_output": model_output, "uncond": uncond, "h1": h1, "h2": h2, "noise": noise}
    for name, t in named.items():
        if t is None:
            continue
        if t.dtype not in _CODES:
            return f"{name} is {t.dtype}, not float32, bfloat16 or float16"
        if _pixel_stride(t.shape, t.stride()) is None:
            return (
                f"{name} with shape {list(t.shape)} and strides {list(t.stride())} is neither contiguous"
                " nor channels_last"
            )
    return None


def _run(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    h1: Tensor | None,
    h2: Tensor | None,
    noise: Tensor | None,
    seeds: Tensor | None,
    stream: int,
    clip: bool,
    variance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    step = check_index(table, index)
    row = table[step].contiguous()
    x_next, x0 = torch.empty_like(x), torch.empty_like(x)
    n, c = x.shape[:2]
    nonfinite = torch.empty(n, dtype=torch.int32)
    operands = (x, model_output, uncond, h1, h2, noise, x_next, x0)
    args = _Args(
        *(field for t in operands for field in _planar(t)),
        row.data_ptr(),
        None if seeds is None else seeds.data_ptr(),
        nonfinite.data_ptr(),
        row.dtype == torch.float64,
        0 if seeds is None else seeds.stride(0),
        n,
        c,
        x.numel() // max(n * c, 1),
        _VARIANCES[variance],
        clip,
        torch.get_num_threads(),
        step,
        stream,
    )
    _function()(args)
    return x_next, x0, nonfinite


KERNELS = {"reverse_step": Kernel(_run, _supports)}
