"""Mean and variance of every channel of every image, from which a norm is folded into a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.channel_moments import eager, reference


def channel_moments(x: Tensor) -> Tensor:
    r"""Mean and biased variance over the pixels.

    .. math::
        \mu_{nc} = \frac1{HW} \sum_p x_{ncp}, \qquad \sigma^2_{nc} = \frac1{HW} \sum_p (x_{ncp} - \mu_{nc})^2

    Args:
        x: [N, C, H, W], floating point.

    Returns:
        [N, C, 2], float32 (float64 for float64 input): mean, variance.

    Raises:
        FastdiffError: x is not such a tensor, or has no pixels.

    Source: one pass by the update of Chan, Golub & LeVeque 1979, eq. 2.1.
    """
    if is_eager():
        _check(x)
        return eager.channel_moments(x)
    return op(x)


def _check(x: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point() or x.shape[2:].numel() == 0:
        raise FastdiffError(
            f"channel_moments: x must be a floating-point tensor [N, C, H, W], got {x.dtype} {list(x.shape)}"
        )


def _fake(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((*x.shape[:2], 2), dtype=dtype)


op = FusedOp(
    "channel_moments",
    reference.Arguments,
    "Tensor moments",
    reference=lambda given: reference.channel_moments(given.x),
    fake=lambda given: _fake(given.x),
    check=lambda given: _check(given.x),
)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return reference.channel_moments_backward(grad, *ctx.saved_tensors)


op.register_autograd(_backward, _setup_context)
