"""The distribution of the first passage by two series, and the probability of either boundary, for s = 1, in float64.

For the upper boundary v and w = z / a become -v and 1 - w. As for the density (ops/first_passage_density), five terms
of the series for small tau = t / a^2 or of the one for large tau are enough.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.ops.first_passage_density.reference import SPLIT

_IMAGES = torch.arange(-2.0, 3.0, dtype=torch.float64)  # k of the series for small tau: reflected walks
_WAVES = torch.arange(1.0, 6.0, dtype=torch.float64)  # k of the series for large tau: sine waves


def distribution(t: Tensor, v: Tensor, a: Tensor, w: Tensor) -> Tensor:
    """P(response at the lower boundary by t), one drift and one start; 0 where t <= 0."""
    tau, nu = torch.where(t > 0, t, 1.0) / a**2, v * a
    small = _distribution_small(tau.clamp_max(SPLIT), w, nu)
    large = _distribution_large(tau.clamp_min(SPLIT), w, nu)
    return torch.where(t > 0, torch.where(tau < SPLIT, small, large), 0.0)


def probability_upper(nu: Tensor, w: Tensor) -> Tensor:
    """P(upper boundary) = (1 - exp(-2 nu w)) / (1 - exp(-2 nu)), nu = v a / s^2, w = z / a; w for nu = 0."""
    size = torch.where(nu.abs() < 1e-4, 1.0, nu.abs())  # where it is that small, the series below is used
    rising = torch.expm1(-2 * size * w) / torch.expm1(-2 * size)
    falling = torch.exp(-2 * size * (1 - w)) * rising
    near = w + w * (1 - w) * nu * (1 + (1 - 2 * w) * nu / 3)
    return torch.where(nu.abs() < 1e-4, near, torch.where(nu > 0, rising, falling))


def _distribution_small(tau: Tensor, w: Tensor, nu: Tensor) -> Tensor:
    tau, w, nu = tau[..., None], w[..., None], nu[..., None]
    size, root, signed = nu.abs(), torch.sqrt(2 * tau), w + 2 * _IMAGES
    x = signed.abs()
    forward = torch.exp(-nu * w - size * x) * torch.erfc((x - size * tau) / root)
    # exp(nu x) erfc(...), whose factors overflow and underflow, by the scaled erfc
    back = torch.exp(-nu * w - x**2 / (2 * tau) - nu**2 * tau / 2) * torch.special.erfcx(
        (x + size * tau) / root
    )
    return 0.5 * (signed.sign() * (forward + back)).sum(-1)


def _distribution_large(tau: Tensor, w: Tensor, nu: Tensor) -> Tensor:
    k_pi, nu_k = math.pi * _WAVES, nu[..., None]
    waves = 2 * k_pi * torch.sin(k_pi * w[..., None]) / (nu_k**2 + k_pi**2)
    decay = torch.exp(-(k_pi**2) / 2 * tau[..., None])
    tail = torch.exp(-nu * w - nu**2 * tau / 2) * (waves * decay).sum(-1)
    return probability_upper(-nu, 1 - w) - tail
