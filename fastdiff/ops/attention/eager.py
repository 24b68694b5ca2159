"""attention in the PyTorch call that a user would write today."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

KERNELS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, kernel: str = "") -> Tensor:
    """Same arguments as :func:`fastdiff.ops.attention`.

    ``kernel`` ("cudnn", "flash" or "efficient") comes before PyTorch's other ones; "" leaves the choice to PyTorch.
    """
    # cuDNN's kernel, which PyTorch 2.11 prefers on Hopper, returns NaN for scale <= 0 and None for no queries.
    is_unusual = q.is_cuda and (q.numel() == 0 or (scale is not None and scale <= 0))
    if not (kernel or is_unusual):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    from torch.nn.attention import SDPBackend, sdpa_kernel  # imports much, and is rarely needed

    if is_unusual:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
    first = getattr(SDPBackend, KERNELS[kernel])
    others = [getattr(SDPBackend, name) for name in (*KERNELS.values(), "MATH")]
    with sdpa_kernel([first, *(b for b in others if b != first)], set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
