"""norm_coefficients in plain PyTorch: the specification, the fallback and what eager code would do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.norm_coefficients`."""

    moments: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    more: Tensor | None = None
    scale: Tensor | None = None  # here [N, C]
    shift: Tensor | None = None
    eps: float = 1e-5

    def parameters(self) -> dict[str, Tensor | None]:
        return {"weight": self.weight, "bias": self.bias, "scale": self.scale, "shift": self.shift}


def norm_coefficients(given: Arguments) -> Tensor:
    """[N, C, 2] -> [N, 3, C]: center, scale, shift."""
    moments, more, num_groups = given.moments, given.more, given.num_groups
    # 1 + scale in 16 bits would round.
    weight, bias, scale, shift = (
        None if p is None else p.to(moments.dtype) for p in given.parameters().values()
    )
    both = moments if more is None else torch.cat([moments, more], dim=1)
    n, channels, _ = both.shape
    mean, var = both.reshape(n, num_groups, channels // num_groups, 2).unbind(3)  # [N, G, C/G]
    center = mean.mean(dim=2, keepdim=True)
    spread = (var + (mean - center).square()).mean(dim=2, keepdim=True)
    factor = torch.rsqrt(spread + given.eps).expand_as(mean).reshape(n, channels)
    offset = torch.zeros_like(factor)
    if weight is not None:
        factor = factor * weight
    if bias is not None:
        offset = offset + bias
    if scale is not None:
        factor, offset = factor * (1 + scale), offset * (1 + scale)
    if shift is not None:
        offset = offset + shift
    return torch.stack([center.expand_as(mean).reshape(n, channels), factor, offset], dim=1)
