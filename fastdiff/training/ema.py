"""Moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    r"""A copy of ``model`` whose weights follow it: avg <- d avg + (1 - d) w after every step.

    d = min(decay, (1 + k) / (10 + k)) at update k = 0, 1, ...: early on the average forgets quickly, so that
    the random initial weights do not linger. Buffers are copied as they are.

    Attributes:
        model: the averaged model, in eval mode, without gradients.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """d of update ``step``, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Follow ``model`` after its update ``step`` (counted from 0)."""
        averages: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - self.decay_at(step))
        self.copy_buffers(model)

    @torch.no_grad()
    def copy_buffers(self, model: M) -> None:
        """All that is left to do where an :class:`AdamWEMA` averages the parameters."""
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
