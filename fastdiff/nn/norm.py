"""GroupNorm with its activation: the module around the fused op."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.nn.recompute import recomputable
from fastdiff.ops import group_norm_silu


class GroupNormSiLU(nn.Module):
    """SiLU(GroupNorm(x) (1 + scale) + shift) with learned weight and bias [C], as ``fastdiff.ops.group_norm_silu``.

    Args:
        num_channels: C, a multiple of num_groups.
        num_groups: 32 throughout ADM.
        silu: False for the norm of an attention block.
    """

    def __init__(
        self, num_channels: int, num_groups: int = 32, *, eps: float = 1e-5, silu: bool = True
    ) -> None:
        super().__init__()
        self.num_groups, self.eps, self.silu = num_groups, eps, silu
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    @recomputable
    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return group_norm_silu(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            scale=scale,
            shift=shift,
            eps=self.eps,
            silu=self.silu,
        )

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, num_groups={self.num_groups}, silu={self.silu}"
