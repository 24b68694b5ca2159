"""bernoulli_step in plain PyTorch: the specification and the fallback. Any dtype, layout and device."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops._like import as_like, is_transformed
from fastdiff.ops.philox import reference as philox


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.bernoulli_step`."""

    probability: Tensor
    seeds: Tensor
    step: Tensor
    factor: Tensor | None = None
    stream: int = 0


def bernoulli_step(given: Arguments) -> Tensor:
    """-> bits like probability. p in float32; in float64 for float64 probabilities."""
    probability, seeds, step, factor, stream = given
    if step.device.type == "cpu" and not is_transformed():
        check_step(step)
    dtype = torch.float64 if probability.dtype == torch.float64 else torch.float32
    p = probability.to(dtype)
    if factor is not None:
        p = combine(p, factor.to(dtype))
    words = philox.random_bits(seeds, math.prod(p.shape[1:]), step, stream).reshape(p.shape)
    bits = torch.where(p.isnan(), p, (philox.uniform(words) < p.double()).to(dtype))
    return as_like(bits, probability)


def combine(c: Tensor, d: Tensor) -> Tensor:
    """The normalised product of two distributions of a bit. One that is certain wins: d over c if both are."""
    both_one, both_zero = c * d, (1 - c) * (1 - d)
    return torch.where((d == 0) | (d == 1), d, both_one / (both_one + both_zero))


def check_step(step: Tensor) -> int:
    """The counter's word. For the CPU: elsewhere, looking at it waits."""
    word = int(step)
    if not 0 <= word < 2**32:
        raise FastdiffError(f"bernoulli_step: step must be in [0, 2^32), got {word}")
    return word
