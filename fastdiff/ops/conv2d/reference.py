"""conv2d in plain PyTorch: the specification and the fallback. Any dtype and layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.channel_moments.reference import channel_moments
from fastdiff.ops.channel_moments.reference import (
    channel_moments_backward as channel_moments_backward,
)


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.conv2d`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    more: Tensor | None = None
    affine: Tensor | None = None
    silu: bool = False
    upsample: bool = False
    image_bias: Tensor | None = None
    residual: Tensor | None = None
    moments: bool = False
    packed: Tensor | None = None
    algorithm: int = 0  # its number


class WeightArguments(NamedTuple):
    grad: Tensor
    x: Tensor
    weight: Tensor
    more: Tensor | None
    affine: Tensor | None
    silu: bool
    upsample: bool
    bias: bool  # whether dbias is wanted


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout of the result: channels_last where x's channels lie side by side, whether or not images have gaps."""
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def _joined(x: Tensor, more: Tensor | None) -> Tensor:
    return x if more is None else torch.cat([x, more], dim=1)


def _normalised(x: Tensor, affine: Tensor | None) -> Tensor:
    """(x - center) scale + shift in the computing precision."""
    x = x.to(compute_dtype(x))
    if affine is None:
        return x
    center, scale, shift = affine.to(x.dtype)[..., None, None].unbind(1)
    return (x - center) * scale + shift


def activate(x: Tensor, affine: Tensor | None, *, silu: bool) -> Tensor:
    """f(x), in x's dtype."""
    h = _normalised(x, affine)
    return (F.silu(h) if silu else h).to(x.dtype)


def conv2d(given: Arguments) -> tuple[Tensor, Tensor]:
    """-> y [N, Cout, H, W], moments [N, Cout, 2] (or [0]). What speeds it up, packed and algorithm, is not needed."""
    x, dtype = given.x, compute_dtype(given.x)
    h = _convolved(given)
    y = _correlate(h, given.weight.to(h.dtype)).to(dtype)
    if given.bias is not None:
        y = y + given.bias[:, None, None]
    if given.image_bias is not None:
        y = y + given.image_bias[..., None, None]
    if given.residual is not None:
        y = y + given.residual
    y = y.to(x.dtype).contiguous(memory_format=layout_of(x))
    return y, channel_moments(y) if given.moments else torch.empty(0, dtype=dtype, device=x.device)


def _convolved(given: Arguments | WeightArguments) -> Tensor:
    """a = up(f(x)), what the weights are correlated with."""
    h = activate(_joined(given.x, given.more), given.affine, silu=given.silu)
    return F.interpolate(h, scale_factor=2.0, mode="nearest") if given.upsample else h


def _correlate(h: Tensor, weight: Tensor) -> Tensor:
    """W * pad(h); PyTorch's own refuses images without pixels or channels."""
    if h.numel() == 0:
        return h.new_zeros((len(h), len(weight), *h.shape[2:]))
    return F.conv2d(h, weight, None, padding=weight.shape[2] // 2)


def conv2d_weight(given: WeightArguments) -> tuple[Tensor, Tensor]:
    """-> dweight like weight (which is looked at for its shape and strides), dbias [Cout] (or [0]).

    dW is the correlation of dy with a = up(f(x)), dbias the sum of dy.
    """
    a, grad, weight = _convolved(given), given.grad, given.weight
    k, dtype = weight.shape[2], compute_dtype(given.x)
    _, dweight, _ = torch.ops.aten.convolution_backward(
        *(grad, a, weight.to(a.dtype), None),
        *((1, 1), (k // 2, k // 2), (1, 1), False, (0, 0), 1, (False, True, False)),
    )
    dbias = bias_backward(grad) if given.bias else grad.new_empty(0, dtype=dtype)
    return torch.empty_like(weight, dtype=dtype).copy_(dweight), dbias


def bias_backward(grad: Tensor) -> Tensor:
    """dbias [Cout], the sum of dy [N, Cout, H, W]."""
    return grad.sum(dim=(0, 2, 3), dtype=compute_dtype(grad))


def input_backward(
    da: Tensor, x: Tensor, more: Tensor | None, affine: Tensor | None, *, silu: bool, upsample: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """da, the gradient of a = up(silu(h)), h = (x - center) scale + shift -> dx, dmore, daffine.

    dh = down(da) sigmoid(h) (1 + h (1 - sigmoid(h))),  down sums over the 2x2 pixels of one
    dscale = sum dh (x - center),  dshift = sum dh,  dx = dh scale,  dcenter = -sum dx
    """
    if more is None and affine is None and not silu and not upsample:
        return da, None, None
    joined = _joined(x, more)
    h = _normalised(joined, affine)
    da = da.to(h.dtype)
    if upsample:
        da = F.avg_pool2d(da, 2) * 4
    if silu:
        sigmoid = torch.sigmoid(h)
        da = da * sigmoid * (1 + h * (1 - sigmoid))
    daffine = None
    if affine is not None:
        center, scale, _ = affine.to(h.dtype)[..., None, None].unbind(1)
        dscale, dshift = (da * (joined - center)).sum(dim=(2, 3)), da.sum(dim=(2, 3))
        da = da * scale
        daffine = torch.stack([-da.sum(dim=(2, 3)), dscale, dshift], dim=1).to(affine.dtype)
    da = da.to(x.dtype)
    if more is None:
        return torch.empty_like(x).copy_(da), None, daffine
    dx, dmore = da.split([x.shape[1], more.shape[1]], dim=1)
    return torch.empty_like(x).copy_(dx), torch.empty_like(more).copy_(dmore), daffine
