"""bernoulli_step as eager PyTorch users run it: one operation after the other, then ``torch.bernoulli``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.ops.bernoulli_step.reference import Arguments
from fastdiff.ops.philox import reference as philox


def bernoulli_step(given: Arguments) -> Tensor:
    """The whole of the op, with Philox words: in float64 the truth of the tests."""
    probability, seeds, step, factor, stream = given
    p = _combined(probability, factor)
    words = philox.random_bits(seeds, math.prod(p.shape[1:]), step, stream).reshape(p.shape)
    return torch.where(p.isnan(), p, (philox.uniform(words) < p).to(p.dtype)).to(probability.dtype)


def with_bernoulli(given: Arguments) -> Tensor:
    """The baseline; the bits are PyTorch's own."""
    return torch.bernoulli(_combined(given.probability, given.factor)).to(given.probability.dtype)


def _combined(c: Tensor, d: Tensor | None) -> Tensor:
    if d is None:
        return c
    product = c * d
    p = product / (product + (1 - c) * (1 - d))
    return torch.where((d == 0) | (d == 1), d.to(p.dtype), p)
