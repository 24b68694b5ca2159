"""conv2d's backward: the input's gradient is the same convolution, the weight's an op of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._library import multiplies_tiles
from fastdiff.ops._op import FusedOp
from fastdiff.ops.conv2d import reference
from fastdiff.ops.conv2d.reference import WeightArguments

_TILE = 4  # of the weight's gradient, each way
_LEAST_TILES, _LEAST_CHANNELS = 8, 16  # of which the kernel is faster than PyTorch's, by measurement


def _fake(given: WeightArguments) -> tuple[Tensor, Tensor]:
    weight, dtype = given.weight, reference.compute_dtype(given.x)
    dbias = given.x.new_empty((len(weight),) if given.bias else (0,), dtype=dtype)
    return torch.empty_like(weight, dtype=dtype), dbias


weight_op = FusedOp(
    "conv2d_weight_backward",
    WeightArguments,
    "(Tensor dweight, Tensor dbias)",
    reference=reference.conv2d_weight,
    fake=_fake,
)
weight_op.differentiate_reference()


def _pays(grad: Tensor, weight: Tensor) -> bool:
    """True if the kernel is suitable: 1x1 is a matrix product, few channels or pixels do not fill vectors, and AMX,
    of which PyTorch makes use, is faster."""
    n, _, h, w = grad.shape
    tiles = n * -(-h // _TILE) * -(-w // _TILE)
    large = tiles >= _LEAST_TILES and min(weight.shape[:2]) >= _LEAST_CHANNELS
    return weight.shape[2] == 3 and large and not multiplies_tiles(grad.dtype)


def conv2d_backward(
    given: WeightArguments,
    *,
    needs_input: bool,
    needs_weight: bool,
    input_gradient: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """-> dx, dmore, dweight, dbias, daffine; those not needed are None.

    Args:
        given: with dy [N, Cout, H, W] of any dtype and layout.
        needs_input: dx, dmore or daffine is needed. needs_weight: dweight is.
        input_gradient: the convolution of (dy, the weight flipped and transposed).
    """
    x, weight, more = given.x, given.weight, given.more
    grad = given.grad.to(x.dtype).contiguous(memory_format=reference.layout_of(x))
    inputs: tuple[Any, ...] = (None, None, None)
    if needs_input:
        flipped = weight.to(x.dtype).flip(2, 3).transpose(0, 1)
        inputs = reference.input_backward(
            input_gradient(grad, flipped), x, more, given.affine, silu=given.silu, upsample=given.upsample
        )
    dweight = dbias = None
    if needs_weight:
        given = given._replace(grad=grad)
        pays = _pays(grad, weight)
        dweight, dbias = weight_op(*given) if pays else reference.conv2d_weight(given)
        dweight = dweight.to(weight.dtype)
    elif given.bias:
        dbias = reference.bias_backward(grad)
    dx, dmore, daffine = inputs
    return dx, dmore, dweight, dbias if given.bias else None, daffine
