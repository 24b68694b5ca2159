"""conv2d's backward: the input's gradient is the same convolution, the weight's an op of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend
from fastdiff.ops._op import FusedOp
from fastdiff.ops.conv2d import reference

_TILE = 4  # of the weight's gradient, each way
_LEAST_TILES, _LEAST_CHANNELS = 8, 16  # of which the kernel is faster than PyTorch's, by measurement


def _fake(grad, x, more, weight, affine, silu, upsample, bias):
    dtype = reference.compute_dtype(x)
    return torch.empty_like(weight, dtype=dtype), x.new_empty((len(weight),) if bias else (0,), dtype=dtype)


weight_op = FusedOp(
    "conv2d_weight_backward",
    "(Tensor grad, Tensor x, Tensor? more, Tensor weight, Tensor? affine, bool silu, bool upsample, bool bias)"
    " -> (Tensor dweight, Tensor dbias)",
    reference=reference.conv2d_weight,
    fake=_fake,
    package="fastdiff.ops.conv2d",
    backends=(Backend.CPU,),
)
weight_op.differentiate_reference()


def _pays(grad: Tensor, weight: Tensor) -> bool:
    """Whether the kernel is made for this: 1x1 is a matrix product, and few channels or pixels fill no vectors."""
    n, _, h, w = grad.shape
    tiles = n * -(-h // _TILE) * -(-w // _TILE)
    return weight.shape[2] == 3 and tiles >= _LEAST_TILES and min(weight.shape[:2]) >= _LEAST_CHANNELS


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    more: Tensor | None,
    weight: Tensor,
    affine: Tensor | None,
    *,
    silu: bool,
    upsample: bool,
    bias: bool,
    needs_input: bool,
    needs_weight: bool,
    input_gradient: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """-> dx, dmore, dweight, dbias, daffine; those not needed are None.

    Args:
        grad: dy [N, Cout, H, W].
        bias: dbias is needed.
        needs_input: dx, dmore or daffine is needed. needs_weight: dweight is.
        input_gradient: the convolution of (dy, the weight flipped and transposed).
    """
    grad = grad.to(x.dtype).contiguous(memory_format=reference.layout_of(x))
    inputs: tuple[Any, ...] = (None, None, None)
    if needs_input:
        flipped = weight.to(x.dtype).flip(2, 3).transpose(0, 1)
        inputs = reference.input_backward(
            input_gradient(grad, flipped), x, more, affine, silu=silu, upsample=upsample
        )
    dweight = dbias = None
    if needs_weight:
        run = weight_op if _pays(grad, weight) else reference.conv2d_weight
        dweight, dbias = run(grad, x, more, weight, affine, silu, upsample, bias)
        dweight = dweight.to(weight.dtype)
    elif bias:
        dbias = reference.bias_backward(grad)
    dx, dmore, daffine = inputs
    return dx, dmore, dweight, dbias if bias else None, daffine
