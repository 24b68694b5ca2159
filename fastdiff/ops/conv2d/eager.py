"""conv2d in the PyTorch calls that a user would write today: truth in float64, otherwise the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.channel_moments.eager import channel_moments


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    more: Tensor | None = None,
    affine: Tensor | None = None,
    silu: bool = False,
    upsample: bool = False,
    image_bias: Tensor | None = None,
    residual: Tensor | None = None,
    moments: bool = False,
    packed: Tensor | None = None,
    algorithm: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Same arguments as the public function; the last two only concern speed."""
    h = x if more is None else torch.cat([x, more], dim=1)
    if affine is not None:
        center, scale, shift = affine.to(h.dtype)[..., None, None].unbind(1)
        h = (h - center) * scale + shift
    h = F.silu(h) if silu else h
    h = F.interpolate(h, scale_factor=2.0, mode="nearest") if upsample else h
    y = F.conv2d(
        h, weight.to(h.dtype), None if bias is None else bias.to(h.dtype), padding=weight.shape[2] // 2
    )
    if image_bias is not None:
        y = y + image_bias.to(y.dtype)[..., None, None]
    if residual is not None:
        y = y + residual
    return (y, channel_moments(y)) if moments else y
