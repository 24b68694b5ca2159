"""attention on the compiled CPU library: tensors become pointers, sizes and strides."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel


def _views_of(*names: str) -> list[tuple[str, type]]:
    """csrc/cpu/attention.h: struct View, once per name; the strides as single fields, which are filled faster."""
    fields: list[tuple[str, type]] = []
    for name in names:
        fields.append((name, ctypes.c_void_p))
        fields += ((f"{name}_{axis}", ctypes.c_int64) for axis in ("batch", "head", "token", "channel"))
    return fields


_SHAPE = [  # csrc/cpu/attention.h: struct Shape
    *((n, ctypes.c_int64) for n in ("batch", "heads", "queries", "keys", "head_dim", "dtype", "threads")),
    ("scale", ctypes.c_double),
]


class _ForwardArgs(ctypes.Structure):
    """csrc/cpu/attention.cpp: struct ForwardArgs."""

    _fields_ = [*_views_of("q", "k", "v", "out"), ("lse", ctypes.c_void_p), *_SHAPE]


class _BackwardArgs(ctypes.Structure):
    """csrc/cpu/attention_backward.cpp: struct BackwardArgs."""

    _fields_ = [
        *_views_of("grad", "q", "k", "v", "out", "dq", "dk", "dv"),
        ("lse", ctypes.c_void_p),
        *_SHAPE,
    ]


@functools.cache
def _forward_function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("attention", _ForwardArgs)


@functools.cache
def _backward_function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("attention_backward", _BackwardArgs)


def _views(*tensors: Tensor) -> list[int]:
    return [field for x in tensors for field in (x.data_ptr(), *x.stride())]


def _shape(q: Tensor, k: Tensor, scale: float) -> tuple[float, ...]:
    code = _native.DTYPE_CODES[q.dtype]
    b, h, t, d = q.shape
    return b, h, t, k.shape[2], d, code, torch.get_num_threads(), scale


def _supports(q: Tensor) -> str | None:
    if q.dtype not in _native.DTYPE_CODES:
        return f"{q.dtype} is not among float32, bfloat16, float16"
    return None


def _forward_supports(q: Tensor, *_: object) -> str | None:
    return _supports(q)


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3])
    args = _ForwardArgs(*_views(q, k, v, out), lse.data_ptr(), *_shape(q, k, scale))
    _forward_function()(args)
    return out, lse


def _backward_supports(grad: Tensor, q: Tensor, *_: object) -> str | None:
    return _supports(q)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    lse = lse.contiguous()
    args = _BackwardArgs(*_views(grad, q, k, v, out, dq, dk, dv), lse.data_ptr(), *_shape(q, k, scale))
    _backward_function()(args)
    return dq, dk, dv


KERNELS = {
    "attention": Kernel(_forward, _forward_supports),
    "attention_backward": Kernel(_backward, _backward_supports),
}
