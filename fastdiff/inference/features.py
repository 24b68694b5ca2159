"""Values passed between fused layers: images with their channels' moments, as one tensor or two side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.ops import channel_moments
from fastdiff.ops.norm_coefficients import op as norm_coefficients


@dataclass(slots=True)
class Features:
    """x [N, C, H, W], channels_last, and its moments [N, C, 2] if the previous layer has computed them."""

    x: Tensor
    moments: Tensor | None = None

    def known_moments(self) -> Tensor:
        if self.moments is None:
            self.moments = channel_moments(self.x)
        return self.moments


class Pair(NamedTuple):
    """Features and a skip connection, which are not concatenated: convolutions read from both."""

    left: Features
    right: Features | None = None

    @property
    def more(self) -> Tensor | None:
        return None if self.right is None else self.right.x

    def joined(self) -> Tensor:
        return self.left.x if self.right is None else torch.cat([self.left.x, self.right.x], dim=1)

    def normalised(self, norm: Any, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """The coefficients [N, 3, C] of a group norm (weight, bias, num_groups, eps) over all channels."""
        return norm_coefficients(
            self.left.known_moments(),
            norm.num_groups,
            norm.weight,
            norm.bias,
            None if self.right is None else self.right.known_moments(),
            scale,
            shift,
            norm.eps,
        )
