"""group_norm_silu in the PyTorch calls that a user would write today: truth in float64, otherwise the baseline."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops.group_norm_silu.reference import Arguments


def group_norm_silu(given: Arguments) -> Tensor:
    """Parameters of another dtype: in theirs, as guided-diffusion's norms."""
    x = given.x
    dtype = x.dtype if given.weight is None else given.weight.dtype
    h = F.group_norm(x.to(dtype), given.num_groups, given.weight, given.bias, given.eps).to(x.dtype)
    if given.scale is not None:
        h = h * (1 + _per_pixel(given.scale, x))
    if given.shift is not None:
        h = h + _per_pixel(given.shift, x)
    return F.silu(h) if given.silu else h


def _per_pixel(p: Tensor, x: Tensor) -> Tensor:
    """[N, C] -> [N, C, 1, ..., 1]."""
    return p.reshape(*x.shape[:2], *[1] * (x.dim() - 2))
