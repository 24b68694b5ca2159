"""channel_moments in plain PyTorch: the specification and the fallback."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.channel_moments`."""

    x: Tensor


def channel_moments(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2]."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    var, mean = torch.var_mean(x.to(dtype), dim=(2, 3), correction=0)
    return torch.stack([mean, var], dim=2)


def channel_moments_backward(grad: Tensor, x: Tensor, moments: Tensor) -> Tensor:
    """dx = (dmean + 2 dvar (x - mean)) / HW, in x's dtype and layout."""
    dmean, dvar = (g[:, :, None, None] for g in grad.unbind(2))
    dx = (dmean + 2 * dvar * (x - moments[:, :, 0, None, None])) / x.shape[2:].numel()
    return torch.empty_like(x).copy_(dx)
