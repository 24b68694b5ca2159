"""norm_coefficients on the compiled CPU library."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel

_PARAMETERS = ("weight", "bias", "scale", "shift")


class _Args(ctypes.Structure):
    """csrc/cpu/norm_coefficients.cpp: struct CoefficientArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("moments", "more", "affine")),
        *(
            field
            for name in _PARAMETERS  # csrc/cpu/group_norm_silu.h: struct Parameter
            for field in (
                (name, ctypes.c_void_p),
                (f"{name}_stride", ctypes.c_int64),
                (f"{name}_dtype", ctypes.c_int64),
            )
        ),
        *((name, ctypes.c_int64) for name in ("images", "channels", "more_channels", "groups")),
        ("eps", ctypes.c_double),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("norm_coefficients", _Args)


def _supports(moments, more, num_groups, weight, bias, scale, shift, eps) -> str | None:
    if moments.dtype != torch.float32 or (more is not None and more.dtype != torch.float32):
        return f"moments are {moments.dtype}, not float32"
    for p in (weight, bias, scale, shift):
        if p is not None and p.dtype not in _native.DTYPE_CODES:
            return f"a parameter is {p.dtype}, not float32, bfloat16 or float16"
    return None


def _run(moments, more, num_groups, weight, bias, scale, shift, eps) -> Tensor:
    moments = moments.contiguous()
    more = None if more is None else more.contiguous()
    channels, more_channels = moments.shape[1], 0 if more is None else more.shape[1]
    affine = torch.empty(len(moments), 3, channels + more_channels)
    rows: list[Any] = []
    kept = [p if p is None or p.stride(-1) == 1 else p.contiguous() for p in (weight, bias, scale, shift)]
    for p in kept:
        if p is None:
            rows += (None, 0, 0)
        else:
            rows += (p.data_ptr(), p.stride(0) if p.dim() == 2 else 0, _native.DTYPE_CODES[p.dtype])
    pointers = moments.data_ptr(), None if more is None else more.data_ptr(), affine.data_ptr()
    _function()(_Args(*pointers, *rows, len(moments), channels, more_channels, num_groups, eps))
    return affine


KERNELS = {"norm_coefficients": Kernel(_run, _supports)}
