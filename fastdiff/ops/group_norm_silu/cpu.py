"""group_norm_silu on the compiled CPU library: tensors become pointers, sizes and strides."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel

_CODES = _native.DTYPE_CODES
_CONTIGUOUS, _CHANNELS_LAST = 0, 1


def _parameter(name: str) -> list[tuple[str, type]]:
    """csrc/cpu/group_norm_silu.h: struct Parameter."""
    return [(name, ctypes.c_void_p), (f"{name}_stride", ctypes.c_int64), (f"{name}_dtype", ctypes.c_int64)]


_PARAMETERS = [field for name in ("weight", "bias", "scale", "shift") for field in _parameter(name)]
_SHAPE = [  # csrc/cpu/group_norm_silu.h: struct Shape
    (name, ctypes.c_int64)
    for name in (
        "images",
        "channels",
        "pixels",
        "groups",
        "image_stride",
        "channels_last",
        "dtype",
        "silu",
        "threads",
    )
]


class _ForwardArgs(ctypes.Structure):
    """csrc/cpu/group_norm_silu.cpp: struct ForwardArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "mean", "rstd")),
        *_PARAMETERS,
        *_SHAPE,
        ("eps", ctypes.c_double),
    ]


class _BackwardArgs(ctypes.Structure):
    """csrc/cpu/group_norm_silu_backward.cpp: struct BackwardArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("grad", "x", "mean", "rstd")),
        *((name, ctypes.c_void_p) for name in ("dx", "dweight", "dbias", "dscale", "dshift")),
        *_PARAMETERS,
        *_SHAPE,
    ]


@functools.cache
def _forward_function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("group_norm_silu", _ForwardArgs)


@functools.cache
def _backward_function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("group_norm_silu_backward", _BackwardArgs)


def _layout(x: Tensor) -> int | None:
    """How each image lies in memory, or None if it has gaps or another order. Images may be apart."""
    if x.is_contiguous():
        return _CONTIGUOUS
    sizes, strides = x.shape, x.stride()
    image = math.prod(sizes[1:])
    if sizes[0] > 1 and strides[0] < image:
        return None
    if _is_dense(sizes[1:], strides[1:]):
        return _CONTIGUOUS
    if _is_dense((*sizes[2:], sizes[1]), (*strides[2:], strides[1])):
        return _CHANNELS_LAST
    return None


def _is_dense(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _pointer(p: Tensor | None, stride: int) -> tuple[int | None, int, int]:
    return (None, 0, 0) if p is None else (p.data_ptr(), stride, _CODES[p.dtype])


def _parameters(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Weight, bias, scale, shift as fields; keep the tensors alive until the call returns."""
    weight, bias, scale, shift = tensors
    return (
        *_pointer(weight, 0),
        *_pointer(bias, 0),
        *_pointer(scale, 0 if scale is None else scale.stride(0)),
        *_pointer(shift, 0 if shift is None else shift.stride(0)),
    )


def _unit_stride(p: Tensor | None) -> Tensor | None:
    return p if p is None or p.stride(-1) == 1 else p.contiguous()


def _shape(x: Tensor, num_groups: int, layout: int, silu: bool) -> tuple[int, ...]:
    n, c = x.shape[:2]
    pixels = x.numel() // max(n * c, 1)
    stride = x.stride(0) if n > 1 else 0
    return n, c, pixels, num_groups, stride, layout, _CODES[x.dtype], silu, torch.get_num_threads()


def _supports(x: Tensor, *parameters: Tensor | None) -> str | None:
    if x.dtype not in _CODES:
        return f"{x.dtype} is not among float32, bfloat16, float16"
    for p in parameters:
        if p is not None and p.dtype not in _CODES:
            return f"a parameter is {p.dtype}, not float32, bfloat16 or float16"
    if _layout(x) is None:
        return f"x with shape {list(x.shape)} and strides {list(x.stride())} is neither contiguous nor channels_last"
    return None


def _forward_supports(x, num_groups, weight, bias, scale, shift, eps, silu) -> str | None:
    return _supports(x, weight, bias, scale, shift)


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
    layout = _layout(x)
    assert layout is not None
    y = torch.empty_like(x)
    mean = torch.empty((x.shape[0], num_groups))
    rstd = torch.empty_like(mean)
    parameters = [_unit_stride(p) for p in (weight, bias, scale, shift)]
    args = _ForwardArgs(
        x.data_ptr(),
        y.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        *_parameters(*parameters),
        *_shape(x, num_groups, layout, silu),
        eps,
    )
    _forward_function()(args)
    return y, mean, rstd


def _backward_supports(grad, x, mean, rstd, num_groups, weight, bias, scale, shift, silu) -> str | None:
    return _supports(x, weight, bias, scale, shift)


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
    layout = _layout(x)
    assert layout is not None
    n, c = x.shape[:2]
    dx = torch.empty_like(x)
    if grad.stride() != dx.stride() or grad.dtype != x.dtype:
        grad = torch.empty_like(dx).copy_(grad)
    outputs = dx, torch.empty(c), torch.empty(c), torch.empty(n, c), torch.empty(n, c)
    parameters = [_unit_stride(p) for p in (weight, bias, scale, shift)]
    args = _BackwardArgs(
        *(t.data_ptr() for t in (grad, x, mean, rstd, *outputs)),
        *_parameters(*parameters),
        *_shape(x, num_groups, layout, silu),
    )
    _backward_function()(args)
    return outputs


KERNELS = {
    "group_norm_silu": Kernel(_forward, _forward_supports),
    "group_norm_silu_backward": Kernel(_backward, _backward_supports),
}
