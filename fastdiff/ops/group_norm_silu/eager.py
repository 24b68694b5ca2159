"""group_norm_silu in the PyTorch calls that a user would write today: truth in float64, otherwise the baseline."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """Same arguments as the public function. Parameters of another dtype: in theirs, as guided-diffusion's norms."""
    dtype = x.dtype if weight is None else weight.dtype
    h = F.group_norm(x.to(dtype), num_groups, weight, bias, eps).to(x.dtype)
    if scale is not None:
        h = h * (1 + _per_pixel(scale, x))
    if shift is not None:
        h = h + _per_pixel(shift, x)
    return F.silu(h) if silu else h


def _per_pixel(p: Tensor, x: Tensor) -> Tensor:
    """[N, C] -> [N, C, 1, ..., 1]."""
    return p.reshape(*x.shape[:2], *[1] * (x.dim() - 2))
