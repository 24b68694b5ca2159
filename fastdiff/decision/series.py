"""The two series behind every density and distribution, for s = 1 and the lower boundary, in float64.

For the upper boundary v and w = z / a become -v and 1 - w. With tau = t / a^2 both series converge to the same
function, one fast for small tau and one for large tau. Taking each on its side of SPLIT, five terms leave out less than
1e-15 of the sum (docs/decision.md), so that there is no number of terms to choose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPLIT = 0.3  # of tau
_FEW = 2048
_IMAGES = torch.arange(-2.0, 3.0, dtype=torch.float64)  # k of the series for small tau: reflected walks
_WAVES = torch.arange(1.0, 6.0, dtype=torch.float64)  # k of the series for large tau: sine waves


def log_density(t: Tensor, v: Tensor, a: Tensor, w: Tensor, sv: Tensor) -> Tensor:
    """Logarithm of the density at the lower boundary, drift N(v, sv), start w a; -inf where t <= 0. Broadcasts."""
    begun = t > 0
    t = torch.where(begun, t, 1.0)  # any time at which nothing is infinite, gradients included
    tau = t / a**2
    if bool(sv.any()):
        growth = 1 + sv**2 * t
        exponent = (sv**2 * a**2 * w**2 - 2 * v * a * w - v**2 * t) / (2 * growth) - 0.5 * growth.log()
    else:
        exponent = v * (a * w + 0.5 * v * t).neg()
    return torch.where(
        begun, exponent - 2 * a.log() + _LogSeries.apply(*torch.broadcast_tensors(tau, w)), -math.inf
    )


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


class _LogSeries(torch.autograd.Function):
    """log g(tau, w) with its derivatives in closed form, made on the way; higher ones by autograd."""

    @staticmethod
    def forward(ctx, tau: Tensor, w: Tensor) -> Tensor:
        slopes = any(ctx.needs_input_grad)
        found, by_tau, by_w = _both_series(tau, w, slopes)
        ctx.save_for_backward(tau, w, by_tau, by_w)
        return found

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        tau, w, by_tau, by_w = ctx.saved_tensors
        if torch.is_grad_enabled():
            values = _both_series(tau, w, slopes=False)[0]
            return torch.autograd.grad(values, (tau, w), grad, create_graph=True, allow_unused=True)
        return grad * by_tau, grad * by_w


def _both_series(tau: Tensor, w: Tensor, slopes: bool) -> tuple[Tensor, ...]:
    """log g and, if wanted, its derivatives by tau and by w; each series where it is needed."""
    small = tau < SPLIT
    if tau.numel() < _FEW:  # choosing costs more than computing both
        near = _log_small(tau.clamp_max(SPLIT), w, slopes)
        far = _log_large(tau.clamp_min(SPLIT), w, slopes)
        return tuple(torch.where(small, x, y) for x, y in zip(near, far, strict=True))
    near = _log_small(tau[small], w[small], slopes)
    far = _log_large(tau[~small], w[~small], slopes)
    if not slopes:
        empty = torch.empty_like(tau)
        found = empty.masked_scatter(small, near[0]).masked_scatter(~small, far[0])
        return found, empty, empty
    results = torch.empty(3, *tau.shape, dtype=tau.dtype)
    for result, x, y in zip(results, near, far, strict=True):
        result[small], result[~small] = x, y
    return tuple(results)


def _log_small(tau: Tensor, w: Tensor, slopes: bool) -> tuple[Tensor, ...]:
    """log g by the reflections -2 ... 2; exp(-w^2 / 2 tau) is taken out, so that nothing underflows."""
    near, far = torch.exp(-2 * (1 - w) / tau), torch.exp(-2 * (1 + w) / tau)
    first, second = (w - 2) * near, (w + 2) * far
    third, fourth = (w - 4) * near**3 * far, (w + 4) * near * far**3
    total = w + first + second + third + fourth
    found = torch.log(total) - 1.5 * torch.log(tau) - w**2 / (2 * tau) - 0.5 * math.log(2 * math.pi)
    if not slopes:
        return found, found, found
    rising = (1 - w) * first + (1 + w) * second + (4 - 2 * w) * third + (4 + 2 * w) * fourth
    by_tau = 2 * rising / (total * tau**2) - 1.5 / tau + w**2 / (2 * tau**2)
    shifted = 1 + near + far + near * far * (near**2 + far**2)
    by_w = (shifted + 2 * (first - second + 2 * third - 2 * fourth) / tau) / total - w / tau
    return found, by_tau, by_w


def _log_large(tau: Tensor, w: Tensor, slopes: bool) -> tuple[Tensor, ...]:
    """log g by the waves 1 ... 5, sin(k x) / sin(x) as polynomials in cos(x); the first one's decay is taken out."""
    rate = -(math.pi**2) / 2
    decay = tau * rate
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
    if not slopes:
        return found, found, found
    by_tau = rate * (1 + (3 * second + 8 * third + 15 * fourth + 24 * fifth) / total)
    by_c = 4 * q3 + 24 * c * q8 + (96 * c2 - 16) * q15 + c * (320 * c2 - 120) * q24
    return found, by_tau, math.pi * (c / s - s * by_c / total)


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
