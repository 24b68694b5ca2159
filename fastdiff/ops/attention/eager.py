"""attention in the PyTorch call that a user would write today."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Same arguments as :func:`fastdiff.ops.attention`."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
