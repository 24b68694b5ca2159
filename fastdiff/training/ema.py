"""Moving averages of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def warmed_up(decay: float, step: int) -> float:
    """d = min(decay, (1 + k) / (10 + k)) of update k = ``step``, counted from 0.

    Early on the average forgets quickly, so that the random initial weights do not linger.
    """
    return min(decay, (1 + step) / (10 + step))


class EMA(Generic[M]):
    r"""A copy of ``model`` whose weights follow it: avg <- d avg + (1 - d) w after every step.

    d is :func:`warmed_up`. Buffers are copied as they are. For loops with an optimizer of their own:
    :class:`AdamWEMA` averages in the pass that updates the weights.

    Attributes:
        model: the averaged model, in eval mode, without gradients.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Follow ``model`` after its update ``step`` (counted from 0)."""
        averages: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, list(model.parameters()), 1 - warmed_up(self.decay, step))
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
