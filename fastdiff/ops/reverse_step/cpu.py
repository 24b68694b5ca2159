"""reverse_step on the compiled CPU library: tensors become pointers and strides."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel
from fastdiff.ops.reverse_step import VARIANCES, planar
from fastdiff.ops.reverse_step.reference import check_index

_CODES = _native.DTYPE_CODES
_VARIANCES = {name: code for code, name in enumerate(VARIANCES)}
_PLANAR = ("image_stride", "channel_stride", "pixel_stride", "channels", "dtype")


class _Args(ctypes.Structure):
    """csrc/cpu/reverse_step.cpp: struct Args; an operand is a struct Planar (csrc/cpu/planes.h)."""

    _fields_ = [
        *(
            (f"{operand}_{name}", ctypes.c_void_p if name == "data" else ctypes.c_int64)
            for operand in planar.OPERANDS
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
def _template(*layouts: planar.Layout | None) -> _Args:
    """Arguments that hold everything about these operands but their addresses: a sampling run needs it once."""
    args = _Args()
    for operand, layout in zip(planar.OPERANDS, layouts, strict=True):
        if layout is not None:
            sizes, strides, dtype = layout
            values = planar.strides(sizes, strides)
            assert values is not None
            for name, value in zip(_PLANAR, (*values, _CODES[dtype]), strict=True):
                setattr(args, f"{operand}_{name}", value)
    x_layout = layouts[0]
    assert x_layout is not None
    args.images, args.channels, args.pixels = *x_layout[0][:2], math.prod(x_layout[0][2:])
    return args


def _supports(
    x, model_output, table, index, uncond, h1, h2, noise, seeds, stream, clip, variance
) -> str | None:
    return planar.why_not(x, model_output, uncond, h1, h2, noise)


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
    nonfinite = torch.empty(x.shape[0], dtype=torch.int32)
    state, out = planar.layout(x), planar.layout(x_next)
    template = _template(
        state,
        planar.layout(model_output),
        planar.layout(uncond),
        planar.layout(h1),
        planar.layout(h2),
        planar.layout(noise),
        out,
        out,
    )
    args = _Args.from_buffer_copy(template)
    args.x_data, args.model_data, args.x_next_data, args.x0_data = (
        x.data_ptr(),
        model_output.data_ptr(),
        x_next.data_ptr(),
        x0.data_ptr(),
    )
    for name, t in (("uncond_data", uncond), ("h1_data", h1), ("h2_data", h2), ("noise_data", noise)):
        if t is not None:
            setattr(args, name, t.data_ptr())
    args.row, args.row_is_double = row.data_ptr(), row.dtype == torch.float64
    if seeds is not None:
        args.seeds, args.seed_stride = seeds.data_ptr(), seeds.stride(0)
    args.nonfinite = nonfinite.data_ptr()
    args.variance, args.clip, args.threads = _VARIANCES[variance], clip, torch.get_num_threads()
    args.step, args.stream = step, stream
    _function()(args)
    return x_next, x0, nonfinite


KERNELS = {"reverse_step": Kernel(_run, _supports)}
