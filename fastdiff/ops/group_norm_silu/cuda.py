"""group_norm_silu on the compiled CUDA library: tensors become pointers, sizes and strides."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._native import DTYPE_CODES
from fastdiff.ops._op import Kernel
from fastdiff.ops.group_norm_silu.cpu import layout

# csrc/cuda/group_norm_silu.cuh: enum Path. How tiles of a slab come together; which of them fit depends on the shape.
AUTOMATIC, ONE_BLOCK, CLUSTER, PARTIALS = range(4)

_PARAMETERS = ("weight", "bias", "scale", "shift")
_PARAMETER_FIELDS = [  # csrc/cuda/group_norm_silu.cuh: struct Affine, of four Parameters
    field
    for name in _PARAMETERS
    for field in (
        (name, ctypes.c_void_p),
        (f"{name}_stride", ctypes.c_int64),
        (f"{name}_dtype", ctypes.c_int64),
    )
]
# csrc/cuda/group_norm_silu.cuh: struct Shape
_SHAPE = (
    "images",
    "channels",
    "pixels",
    "groups",
    "image_stride",
    "channels_last",
    "dtype",
    "silu",
    "path",
)
_SHAPE_FIELDS = [(name, ctypes.c_int64) for name in _SHAPE]
_RESULTS = ("dx", "dweight", "dbias", "dscale", "dshift")


class _ForwardArgs(ctypes.Structure):
    """csrc/cuda/group_norm_silu_forward.cuh: struct ForwardArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "mean", "rstd", "workspace")),
        *_PARAMETER_FIELDS,
        *_SHAPE_FIELDS,
        ("eps", ctypes.c_double),
    ]


class _BackwardArgs(ctypes.Structure):
    """csrc/cuda/group_norm_silu_backward.cuh: struct BackwardArgs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("grad", "x", "mean", "rstd")),
        *((name, ctypes.c_void_p) for name in (*_RESULTS, "workspace")),
        *_PARAMETER_FIELDS,
        *_SHAPE_FIELDS,
    ]


_NAMES = {_ForwardArgs: "group_norm_silu", _BackwardArgs: "group_norm_silu_backward"}


_Rows = tuple[int, torch.dtype] | None  # how a parameter lies: stride between images' rows, dtype


@functools.lru_cache(maxsize=256)
def _template(
    struct: type[ctypes.Structure],
    device: torch.device,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    num_groups: int,
    silu: bool,
    path: int,
    *parameters: _Rows,
) -> tuple[ctypes.Structure, int]:
    """Arguments that hold everything but addresses and eps, and the bytes of workspace they need.

    A network needs few of them, again and again.
    """
    args = struct()
    for name, rows in zip(_PARAMETERS, parameters, strict=True):
        if rows is not None:
            setattr(args, f"{name}_stride", rows[0])
            setattr(args, f"{name}_dtype", DTYPE_CODES[rows[1]])
    n, c = sizes[:2]
    shape = (n, c, math.prod(sizes[2:]), num_groups, strides[0] if n > 1 else 0)
    how = (layout(sizes, strides), DTYPE_CODES[dtype], silu, path)
    for name, value in zip(_SHAPE, (*shape, *how), strict=True):
        setattr(args, name, value)
    return args, _cuda.workspace_function(_NAMES[struct], struct)(args, device)


def _launch(
    struct: type[ctypes.Structure],
    tensors: dict[str, Tensor],
    num_groups: int,
    silu: bool,
    path: int,
    *parameters: Tensor | None,
    **others: float,
) -> None:
    """Addresses of ``tensors`` ("x" among them) and parameters into the arguments, and off it goes."""
    x = tensors["x"]
    # A copy may be freed while the kernel still waits: its memory is handed out again on the same stream only.
    kept = [p if p is None or p.stride(-1) == 1 else p.contiguous() for p in parameters]
    rows = [None if p is None else (p.stride(0) if p.dim() == 2 else 0, p.dtype) for p in kept]
    template, size = _template(struct, x.device, x.shape, x.stride(), x.dtype, num_groups, silu, path, *rows)
    args: Any = struct.from_buffer_copy(template)
    if size:
        workspace = torch.empty(size // 4, dtype=torch.float32, device=x.device)
        args.workspace = workspace.data_ptr()
    for name, tensor in (*tensors.items(), *zip(_PARAMETERS, kept, strict=True)):
        if tensor is not None:
            setattr(args, name, tensor.data_ptr())
    for name, value in others.items():
        setattr(args, name, value)
    _cuda.function(_NAMES[struct], struct)(args, x.device)


def _supports(x: Tensor, **others: Tensor | None) -> str | None:
    if reason := _cuda.why_not_tensors(x, **others):
        return reason
    if layout(x.shape, x.stride()) is None:
        return f"x with shape {list(x.shape)} and strides {list(x.stride())} is neither contiguous nor channels_last"
    return None


def _forward_supports(x, num_groups, weight, bias, scale, shift, eps, silu) -> str | None:
    return _supports(x, weight=weight, bias=bias, scale=scale, shift=shift)


def forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    silu: bool,
    path: int = AUTOMATIC,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op's forward; ``path`` is for tests."""
    y = torch.empty_like(x)
    mean = torch.empty(x.shape[0], num_groups, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    tensors = {"x": x, "y": y, "mean": mean, "rstd": rstd}
    _launch(_ForwardArgs, tensors, num_groups, silu, path, weight, bias, scale, shift, eps=eps)
    return y, mean, rstd


def _backward_supports(grad, x, mean, rstd, num_groups, weight, bias, scale, shift, silu) -> str | None:
    return _supports(x, weight=weight, bias=bias, scale=scale, shift=shift)


def backward(
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
    path: int = AUTOMATIC,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op's backward; ``path`` is for tests."""
    n, c = x.shape[:2]
    dx = torch.empty_like(x)
    if grad.stride() != dx.stride() or grad.dtype != x.dtype:
        grad = torch.empty_like(dx).copy_(grad)
    sums = [torch.empty(size, dtype=torch.float32, device=x.device) for size in (c, c, (n, c), (n, c))]
    dweight, dbias, dscale, dshift = sums
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_(), dscale.zero_(), dshift.zero_()
    tensors = {"grad": grad, "x": x, "mean": mean, "rstd": rstd}
    tensors |= dict(zip(_RESULTS, (dx, *sums), strict=True))
    _launch(_BackwardArgs, tensors, num_groups, silu, path, weight, bias, scale, shift)
    return dx, dweight, dbias, dscale, dshift


KERNELS = {
    "group_norm_silu": Kernel(forward, _forward_supports),
    "group_norm_silu_backward": Kernel(backward, _backward_supports),
}
