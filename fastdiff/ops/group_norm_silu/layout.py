"""How an image lies in memory: what the kernels of Triton go by, as csrc/torch/group_norm_silu.cpp does for the others."""

from __future__ import annotations

import functools
import math

CONTIGUOUS, CHANNELS_LAST = 0, 1


@functools.lru_cache(maxsize=256)
def layout(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """How each image lies in memory, or None if it has gaps or another order. Images may be apart."""
    if 0 in sizes:
        return CONTIGUOUS
    if sizes[0] > 1 and strides[0] < math.prod(sizes[1:]):
        return None
    if _is_dense(sizes[1:], strides[1:]):
        return CONTIGUOUS
    if _is_dense((*sizes[2:], sizes[1]), (*strides[2:], strides[1])):
        return CHANNELS_LAST
    return None


def _is_dense(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


    struct: type[ctypes.Structure],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    num_groups: int,
    silu: bool,
    *parameters: _Rows,
) -> ctypes.Structure:
    """Arguments that hold everything but addresses, eps and threads: a network needs few of them, again and again."""
    args = struct()
    for name, rows in zip(_PARAMETERS, parameters, strict=True):
        if rows is not None:
            setattr(args, f"{name}_stride", rows[0])
            setattr(args, f"{name}_dtype", _CODES[rows[1]])
    n, c = sizes[:2]
    shape = (n, c, math.prod(sizes[2:]), num_groups, strides[0] if n > 1 else 0)
    for name, value in zip(_SHAPE, (*shape, layout(sizes, strides), _CODES[dtype], silu), strict=False):
        setattr(args, name, value)
    return args


def _fill(
    struct: type[ctypes.Structure], x: Tensor, num_groups: int, silu: bool, *parameters: Tensor | None
) -> tuple[Any, list[Tensor | None]]:
    """The arguments but for x's and the results' addresses, and the tensors to keep until the call returns."""
    kept = [p if p is None or p.stride(-1) == 1 else p.contiguous() for p in parameters]
    rows = [None if p is None else (p.stride(0) if p.dim() == 2 else 0, p.dtype) for p in kept]
    template = _template(struct, x.shape, x.stride(), x.dtype, num_groups, silu, *rows)
    args: Any = struct.from_buffer_copy(template)
    weight, bias, scale, shift = kept
    if weight is not None:
        args.weight = weight.data_ptr()
    if bias is not None:
        args.bias = bias.data_ptr()
    if scale is not None:
        args.scale = scale.data_ptr()
    if shift is not None:
        args.shift = shift.data_ptr()
    args.threads = torch.get_num_threads()
    return args, kept


def _supports(x: Tensor, *parameters: Tensor | None) -> str | None:
    if x.dtype not in _CODES:
        return f"{x.dtype} is not among float32, bfloat16, float16"
    for p in parameters:
        if p is not None and p.dtype not in _CODES:
            return f"a parameter is {p.dtype}, not float32, bfloat16 or float16"
    if layout(x.shape, x.stride()) is None:
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
    y = torch.empty_like(x)
    mean = torch.empty((x.shape[0], num_groups))
    rstd = torch.empty_like(mean)
    args, _kept = _fill(_ForwardArgs, x, num_groups, silu, weight, bias, scale, shift)
    args.x, args.y, args.mean, args.rstd = x.data_ptr(), y.data_ptr(), mean.data_ptr(), rstd.data_ptr()
    args.eps = eps
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
    n, c = x.shape[:2]
    dx = torch.empty_like(x)
    if grad.stride() != dx.stride() or grad.dtype != x.dtype:
        grad = torch.empty_like(dx).copy_(grad)
    outputs = dx, torch.empty(c), torch.empty(c), torch.empty(n, c), torch.empty(n, c)
    args, _kept = _fill(_BackwardArgs, x, num_groups, silu, weight, bias, scale, shift)
    args.grad, args.x, args.mean, args.rstd = grad.data_ptr(), x.data_ptr(), mean.data_ptr(), rstd.data_ptr()
    for name, result in zip(_RESULTS, outputs, strict=True):
        setattr(args, name, result.data_ptr())
    _backward_function()(args)
    return outputs


KERNELS = {
    "group_norm_silu": Kernel(_forward, _forward_supports),
    "group_norm_silu_backward": Kernel(_backward, _backward_supports),
}
