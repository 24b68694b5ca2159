"""reverse_step in CUDA: one launch, the same at every step; the row is looked up on the device."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._native import DTYPE_CODES
from fastdiff.ops._op import Kernel
from fastdiff.ops.reverse_step import VARIANCES, planar

_VARIANCES = {name: code for code, name in enumerate(VARIANCES)}
_PLANAR = ("channel_stride", "pixel_stride", "channels", "dtype")


class _Args(ctypes.Structure):
    """csrc/cuda/reverse_step.cuh: struct Args; an operand is a struct Planar."""

    _fields_ = [
        *(
            field
            for operand in planar.OPERANDS
            for field in (
                (f"{operand}_data", ctypes.c_void_p),
                (f"{operand}_image_stride", ctypes.c_int64),
                *((f"{operand}_{name}", ctypes.c_int32) for name in _PLANAR),
            )
        ),
        *((name, ctypes.c_void_p) for name in ("table", "index", "seeds", "nonfinite")),
        *((name, ctypes.c_int64) for name in ("rows", "seed_stride", "images")),
        *((name, ctypes.c_int32) for name in ("channels", "pixels", "table_is_double", "variance", "clip")),
        ("stream", ctypes.c_uint32),
    ]


@functools.lru_cache(maxsize=256)
def _template(*layouts: planar.Layout | None) -> _Args:
    """Arguments that hold everything about these operands but their addresses: a sampling run needs it once."""
    args = _Args()
    for operand, layout in zip(planar.OPERANDS, layouts, strict=True):
        if layout is not None:
            sizes, strides, dtype = layout
            found = planar.strides(sizes, strides)
            assert found is not None
            image, *others = found
            setattr(args, f"{operand}_image_stride", image)
            for name, value in zip(_PLANAR, (*others, DTYPE_CODES[dtype]), strict=True):
                setattr(args, f"{operand}_{name}", value)
    x_layout = layouts[0]
    assert x_layout is not None
    args.images, args.channels, args.pixels = *x_layout[0][:2], math.prod(x_layout[0][2:])
    return args


def _supports(
    x, model_output, table, index, uncond, h1, h2, noise, seeds, stream, clip, variance
) -> str | None:
    if model_output.shape[1:].numel() >= 2**31:
        return f"one image of model_output {list(model_output.shape)} has 2^31 elements or more"
    return _cuda.why_not_tensors(x) or planar.why_not(x, model_output, uncond, h1, h2, noise)


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
    x_next, x0 = torch.empty_like(x), torch.empty_like(x)
    nonfinite = torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)
    table = table.contiguous()
    operands = (x, model_output, uncond, h1, h2, noise, x_next, x0)
    args = _Args.from_buffer_copy(_template(*map(planar.layout, operands)))
    for name, t in zip(planar.OPERANDS, operands, strict=True):
        if t is not None:
            setattr(args, f"{name}_data", t.data_ptr())
    args.table, args.index, args.nonfinite = table.data_ptr(), index.data_ptr(), nonfinite.data_ptr()
    args.rows, args.table_is_double = table.shape[0], table.dtype == torch.float64
    if seeds is not None:
        args.seeds, args.seed_stride = seeds.data_ptr(), seeds.stride(0)
    args.variance, args.clip, args.stream = _VARIANCES[variance], clip, stream
    _cuda.function("reverse_step", _Args)(args, x.device)
    return x_next, x0, nonfinite


KERNELS = {"reverse_step": Kernel(_run, _supports)}
