"""The density of a first passage in plain PyTorch, with its derivatives: the specification.

With tau = t / a^2 two series converge to the same function, one fast for small tau and one for large tau. Taking each
on its side of SPLIT, five terms leave out less than 1e-15 of the sum (docs/decision.md), so that there is no number of
terms to choose.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SPLIT = 0.3  # of tau; csrc/common/first_passage_density.h: kSplit
PARAMETERS = 5  # whose derivatives are the rows of the slopes


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.first_passage_density.first_passage_density`; t [N], the others [N] or []."""

    t: Tensor
    v: Tensor
    a: Tensor
    w: Tensor
    sv: Tensor
    upper: Tensor | None
    slopes: bool

    def parameters(self) -> tuple[Tensor, ...]:
        return self[:PARAMETERS]


def first_passage_density(given: Arguments) -> tuple[Tensor, Tensor]:
    """Logarithm of the density [N], and [5, N] its derivatives by t, v, a, w and sv, or [0, N] if not wanted.

    f = exp(E - 2 ln a) g(tau, w) with E = N / 2 G - ln(G) / 2, N = (sv a w)^2 - 2 v a w - v^2 t and G = 1 + sv^2 t.
    """
    t, v, a, w, sv = given.parameters()
    if given.upper is not None:
        v, w = torch.where(given.upper, -v, v), torch.where(given.upper, 1 - w, w)
    begun = t > 0
    t = torch.where(begun, t, 1.0)  # any time at which nothing is infinite, gradients included
    tau, x, growth = t / a**2, a * w, 1 + sv**2 * t
    numerator = (sv * x) ** 2 - v * (2 * x + v * t)
    small = tau < SPLIT
    near = _small_times(tau.clamp(1e-280, SPLIT), w)
    far = _large_times(tau.clamp_min(SPLIT), w)
    g, by_tau, by_w = (torch.where(small, one, other) for one, other in zip(near, far, strict=True))
    value = 0.5 * numerator / growth - 0.5 * growth.log() - 2 * a.log() + g
    found = torch.where(begun, value, -math.inf)
    if not given.slopes:
        return found, t.new_empty(0, *t.shape)
    ratio, turn = numerator / growth, (sv**2 * x - v) / growth
    by_v, by_start = -(x + v * t) / growth, a * turn + by_w
    if given.upper is not None:
        by_v, by_start = (torch.where(given.upper, -by, by) for by in (by_v, by_start))
    slopes = torch.stack(
        torch.broadcast_tensors(
            -0.5 * (v**2 + sv**2 * (ratio + 1)) / growth + by_tau / a**2,
            by_v,
            w * turn - (2 + 2 * tau * by_tau) / a,
            by_start,
            sv * (x**2 - t * (ratio + 1)) / growth,
        )
    )
    return found, torch.where(begun, slopes, 0.0)


def _small_times(tau: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """log g and its derivatives by the reflections -2 ... 2; exp(-w^2 / 2 tau) is taken out against underflow."""
    near, far = torch.exp(-2 * (1 - w) / tau), torch.exp(-2 * (1 + w) / tau)
    first, second = (w - 2) * near, (w + 2) * far
    third, fourth = (w - 4) * near**3 * far, (w + 4) * near * far**3
    total = w + first + second + third + fourth
    found = torch.log(total) - 1.5 * torch.log(tau) - w**2 / (2 * tau) - 0.5 * math.log(2 * math.pi)
    rising = (1 - w) * first + (1 + w) * second + (4 - 2 * w) * third + (4 + 2 * w) * fourth
    by_tau = 2 * rising / (total * tau**2) - 1.5 / tau + w**2 / (2 * tau**2)
    shifted = 1 + near + far + near * far * (near**2 + far**2)
    by_w = (shifted + 2 * (first - second + 2 * third - 2 * fourth) / tau) / total - w / tau
    return found, by_tau, by_w


def _large_times(tau: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """log g and its derivatives by the waves 1 ... 5, sin(k x) / sin(x) as polynomials in cos(x)."""
    rate = -(math.pi**2) / 2
    decay = tau * rate  # of the first wave, which is taken out
    q, c = torch.exp(decay), torch.cos(math.pi * w)
    # The sine of the smaller of both angles: it keeps its digits next to either boundary.
    s = torch.sin(math.pi * torch.minimum(w, 1 - w))
    q3, c2 = q**3, c**2
    q8 = q3**2 * q**2
    q15 = q8 * q3**2 * q
    q24 = q15 * q8 * q
    second, third = 4 * c * q3, 3 * (4 * c2 - 1) * q8
    fourth, fifth = 16 * c * (2 * c2 - 1) * q15, 5 * ((16 * c2 - 12) * c2 + 1) * q24
    total = 1 + second + third + fourth + fifth
    found = torch.log(math.pi * s * total) + decay
    by_tau = rate * (1 + (3 * second + 8 * third + 15 * fourth + 24 * fifth) / total)
    by_c = 4 * q3 + 24 * c * q8 + (96 * c2 - 16) * q15 + c * (320 * c2 - 120) * q24
    return found, by_tau, math.pi * (c / s - s * by_c / total)
