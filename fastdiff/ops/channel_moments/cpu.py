"""channel_moments on the compiled CPU library."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel


class _Args(ctypes.Structure):
    """csrc/cpu/channel_moments.cpp: struct ChannelMomentsArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "moments")),
        *(
            (name, ctypes.c_int64)
            for name in ("images", "pixels", "channels", "image_stride", "dtype", "threads")
        ),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("channel_moments", _Args)


def _supports(x: Tensor) -> str | None:
    if x.dtype not in _native.DTYPE_CODES:
        return f"{x.dtype} is not among float32, bfloat16, float16"
    return _native.why_not_channels_last(x)


def _run(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    moments = torch.empty(n, c, 2)
    code = _native.DTYPE_CODES[x.dtype]
    _function()(
        _Args(x.data_ptr(), moments.data_ptr(), n, h * w, c, x.stride(0), code, torch.get_num_threads())
    )
    return moments


KERNELS = {"channel_moments": Kernel(_run, _supports)}
