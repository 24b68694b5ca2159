"""conv2d in the PyTorch calls that a user would write today: truth in float64, otherwise the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.channel_moments.eager import channel_moments
from fastdiff.ops.conv2d.reference import Arguments


def conv2d(given: Arguments) -> Tensor | tuple[Tensor, Tensor]:
    """What only concerns speed, packed and algorithm, is not looked at."""
    h = given.x if given.more is None else torch.cat([given.x, given.more], dim=1)
    if given.affine is not None:
        center, scale, shift = given.affine.to(h.dtype)[..., None, None].unbind(1)
        h = (h - center) * scale + shift
    h = F.silu(h) if given.silu else h
    h = F.interpolate(h, scale_factor=2.0, mode="nearest") if given.upsample else h
    weight, bias = given.weight.to(h.dtype), None if given.bias is None else given.bias.to(h.dtype)
    y = F.conv2d(h, weight, bias, padding=weight.shape[2] // 2)
    if given.image_bias is not None:
        y = y + given.image_bias.to(y.dtype)[..., None, None]
    if given.residual is not None:
        y = y + given.residual
    return (y, channel_moments(y)) if given.moments else y
