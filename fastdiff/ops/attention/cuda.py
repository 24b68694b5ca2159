"""attention on the compiled CUDA library: tensors become pointers, sizes and strides."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdiff.ops import _cuda, _native
from fastdiff.ops._op import Kernel

_WIDEST_HEAD = 256


def _views_of(*names: str) -> list[tuple[str, type]]:
    """csrc/cuda/attention.cuh: struct View, once per name; the strides as single fields, which are filled faster."""
    fields: list[tuple[str, type]] = []
    for name in names:
        fields.append((name, ctypes.c_void_p))
        fields += ((f"{name}_{axis}", ctypes.c_int64) for axis in ("batch", "head", "token", "channel"))
    return fields


_SHAPE = [  # struct Shape
    *((n, ctypes.c_int64) for n in ("batch", "heads", "queries", "keys", "head_dim", "dtype")),
    ("scale", ctypes.c_double),
]


class _ForwardArgs(ctypes.Structure):
    """struct ForwardArgs."""

    _fields_ = [*_views_of("q", "k", "v", "out"), ("lse", ctypes.c_void_p), *_SHAPE]


class _BackwardArgs(ctypes.Structure):
    """struct BackwardArgs."""

    _fields_ = [
        *_views_of("grad", "q", "k", "v", "out", "dq", "dk", "dv"),
        ("lse", ctypes.c_void_p),
        ("delta", ctypes.c_void_p),
        *_SHAPE,
    ]


def _views(*tensors: Tensor) -> list[int]:
    return [field for x in tensors for field in (x.data_ptr(), *x.stride())]


def _shape(q: Tensor, k: Tensor, scale: float) -> tuple[float, ...]:
    b, h, t, d = q.shape
    return b, h, t, k.shape[2], d, _native.DTYPE_CODES[q.dtype], scale


def _supports(q: Tensor) -> str | None:
    if q.shape[-1] > _WIDEST_HEAD:
        return f"a head of {q.shape[-1]} channels is wider than {_WIDEST_HEAD}"
    return _cuda.why_not_tensors(q)


def _forward_supports(q: Tensor, *_: object) -> str | None:
    return _supports(q)


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], device=q.device)
    args = _ForwardArgs(*_views(q, k, v, out), lse.data_ptr(), *_shape(q, k, scale))
    _cuda.function("attention", _ForwardArgs)(args, q.device)
    return out, lse


def _backward_supports(grad: Tensor, q: Tensor, *_: object) -> str | None:
    return _supports(q)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    lse = lse.contiguous()
    delta = torch.empty_like(lse)
    args = _BackwardArgs(
        *_views(grad, q, k, v, out, dq, dk, dv), lse.data_ptr(), delta.data_ptr(), *_shape(q, k, scale)
    )
    _cuda.function("attention_backward", _BackwardArgs)(args, q.device)
    return dq, dk, dv


KERNELS = {
    "attention": Kernel(_forward, _forward_supports),
    "attention_backward": Kernel(_backward, _backward_supports),
}
