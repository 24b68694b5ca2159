"""Density and distribution of the response time, differentiable, in float64.

All series are written for s = 1 and for the lower boundary; for the upper one v and w = z/a become -v and 1 - w.
With tau = t / a^2 two series converge to the same function, one fast for small tau and one for large tau. Taking each
on its side of SPLIT, five terms leave out less than 1e-15 of the sum (docs/decision.md), so that there is no number of
terms to choose.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.decision.parameters import (
    Parameters,
    as_tensor,
    check_data,
    is_upper,
    parameters,
)
from fastdiff.decision.quadrature import spread

SPLIT = 0.3  # of tau
_IMAGES = torch.arange(-2.0, 3.0, dtype=torch.float64)  # k of the series for small tau: reflected walks
_WAVES = torch.arange(1.0, 6.0, dtype=torch.float64)  # k of the series for large tau: sine waves


def log_pdf(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    r"""Logarithm of the joint density of response time and choice.

    With t = rt - t0, tau = t / a^2, w = z / a and s = 1, at the lower boundary

    .. math::
        f(t) = \frac{1}{a^2 \sqrt{1 + s_v^2 t}}
               \exp\frac{s_v^2 a^2 w^2 - 2 v a w - v^2 t}{2 (1 + s_v^2 t)}\; g(\tau), \qquad
        g(\tau) = (2 \pi \tau^3)^{-1/2} \sum_{k=-\infty}^{\infty} (w + 2 k)\, e^{-(w + 2 k)^2 / 2 \tau}
                = \pi \sum_{k=1}^{\infty} k\, e^{-k^2 \pi^2 \tau / 2} \sin k \pi w

    The mean over the starts z and the non-decision times t0 is by Gauss-Legendre quadrature.

    Args:
        rt: seconds, any shape.
        choice: 1 upper, 0 lower boundary; broadcasts against rt.
        model, named: v, a, z, t0, s, sv, sz, st0, z_mode, t0_mode as in :func:`fastdiff.decision.parameters`; they
            broadcast against rt, and gradients flow.

    Returns:
        Of the broadcast shape, float64; -inf where rt <= t0. Over time, exp of it integrates to P(choice).

    Raises:
        FastdiffError: bad parameters, NaN, choices other than 0 and 1.

    Source: Navarro & Fuss 2009, "Fast and accurate calculations for first-passage times in Wiener diffusion models",
    eqs. 5 and 6; Tuerlinckx 2004 and Foster & Singmann 2021 for s_v.
    """
    p = parameters(*model, **named).in_noise_units()
    return _log_pdf(as_tensor("rt", rt), is_upper(choice), p)


def pdf(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    """Joint density of response time (per second) and choice: exp of :func:`log_pdf`, which has the details."""
    return log_pdf(rt, choice, *model, **named).exp()


def log_likelihood(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    """Sum of :func:`log_pdf` over observed trials: a scalar, differentiable in the parameters.

    Raises:
        FastdiffError: as log_pdf; no trials, times not positive, rt and choice of different shapes.
    """
    times, upper = check_data(rt, choice)
    p = parameters(*model, **named).in_noise_units()
    return _log_pdf(times, upper, p).sum()


def cdf(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    r"""P(response time <= rt and choice): the integral of :func:`pdf`, term by term.

    With nu = v a and x_k = w + 2 k, for small and for large tau,

    .. math::
        F = \tfrac{1}{2} e^{-\nu w} \sum_k \operatorname{sgn} x_k \Big[
            e^{-|\nu x_k|} \operatorname{erfc} \frac{|x_k| - |\nu| \tau}{\sqrt{2 \tau}} +
            e^{ |\nu x_k|} \operatorname{erfc} \frac{|x_k| + |\nu| \tau}{\sqrt{2 \tau}} \Big]
          = P - 2 \pi e^{-\nu w - \nu^2 \tau / 2} \sum_{k \ge 1}
            \frac{k \sin k \pi w}{\nu^2 + k^2 \pi^2} e^{-k^2 \pi^2 \tau / 2}

    Quadrature over sv (Gauss-Hermite), sz and st0 (Gauss-Legendre). Arguments, shapes and errors: as :func:`log_pdf`.

    Source: Blurton, Kesselmeier & Gondan 2012, "Fast and accurate calculations for cumulative first-passage time
    distributions in Wiener diffusion models", eqs. 3 and 7.
    """
    p = parameters(*model, **named).in_noise_units()
    t, upper = as_tensor("rt", rt), is_upper(choice)
    t, upper, p, weights = spread(t, upper, p, ("sv", "sz", "st0"))
    t = t - p.t0
    tau = torch.where(t > 0, t, 1.0) / p.a**2
    w, nu = p.z / p.a, p.v * p.a
    w, nu = torch.where(upper, 1 - w, w), torch.where(upper, -nu, nu)
    small = _cdf_small(tau.clamp_max(SPLIT), w, nu)
    large = _cdf_large(tau.clamp_min(SPLIT), w, nu)
    values = torch.where(t > 0, torch.where(tau < SPLIT, small, large), 0.0)
    return (values * weights).sum(-1).clamp(0, 1)


def probability_upper(nu: Tensor, w: Tensor) -> Tensor:
    """P(upper boundary) = (1 - exp(-2 nu w)) / (1 - exp(-2 nu)), nu = v a / s^2, w = z / a; w for nu = 0."""
    size = torch.where(nu.abs() < 1e-4, 1.0, nu.abs())  # where it is that small, the series below is used
    rising = torch.expm1(-2 * size * w) / torch.expm1(-2 * size)
    falling = torch.exp(-2 * size * (1 - w)) * rising
    near = w + w * (1 - w) * nu * (1 + (1 - 2 * w) * nu / 3)
    return torch.where(nu.abs() < 1e-4, near, torch.where(nu > 0, rising, falling))


def _log_pdf(t: Tensor, upper: Tensor, p: Parameters) -> Tensor:
    t, upper, p, weights = spread(t, upper, p, ("sz", "st0"))
    t = t - p.t0
    values = _log_lower(
        t, torch.where(upper, -p.v, p.v), p.a, torch.where(upper, 1 - p.z / p.a, p.z / p.a), p.sv
    )
    if values.shape[-1] == 1:
        return values[..., 0]
    # Bounded, because the gradient of nothing but -inf is NaN.
    total = torch.logsumexp(values.clamp_min(-1e300) + weights.clamp_min(1e-300).log(), -1)
    return torch.where((values > -math.inf).any(-1), total, -math.inf)


def _log_lower(t: Tensor, v: Tensor, a: Tensor, w: Tensor, sv: Tensor) -> Tensor:
    begun = t > 0
    t = torch.where(begun, t, 1.0)  # any time at which nothing is infinite, gradients included
    tau = t / a**2
    if sv.requires_grad or bool(sv.any()):
        growth = 1 + sv**2 * t
        exponent = (sv**2 * a**2 * w**2 - 2 * v * a * w - v**2 * t) / (2 * growth) - 0.5 * growth.log()
    else:
        exponent = v * (a * w + 0.5 * v * t).neg()
    series = torch.where(
        tau < SPLIT, _log_small(tau.clamp_max(SPLIT), w), _log_large(tau.clamp_min(SPLIT), w)
    )
    return torch.where(begun, exponent - 2 * a.log() + series, -math.inf)


def _log_small(tau: Tensor, w: Tensor) -> Tensor:
    """log g by reflections; exp(-w^2 / 2 tau) is taken out, so that nothing underflows."""
    w_k = w[..., None]
    total = ((w_k + 2 * _IMAGES) * torch.exp(-2 * _IMAGES * (_IMAGES + w_k) / tau[..., None])).sum(-1)
    return torch.log(total / torch.sqrt(2 * math.pi * tau**3)) - w**2 / (2 * tau)


def _log_large(tau: Tensor, w: Tensor) -> Tensor:
    """log g by waves; the first one's decay is taken out."""
    decay = tau * (-(math.pi**2) / 2)
    waves = math.pi * _WAVES * torch.sin(math.pi * _WAVES * w[..., None])
    total = (waves * torch.exp((_WAVES**2 - 1) * decay[..., None])).sum(-1)
    return torch.log(total) + decay


def _cdf_small(tau: Tensor, w: Tensor, nu: Tensor) -> Tensor:
    tau, w, nu = tau[..., None], w[..., None], nu[..., None]
    size, root, signed = nu.abs(), torch.sqrt(2 * tau), w + 2 * _IMAGES
    x = signed.abs()
    forward = torch.exp(-nu * w - size * x) * torch.erfc((x - size * tau) / root)
    # exp(nu x) erfc(...), whose factors overflow and underflow, by the scaled erfc
    back = torch.exp(-nu * w - x**2 / (2 * tau) - nu**2 * tau / 2) * torch.special.erfcx(
        (x + size * tau) / root
    )
    return 0.5 * (signed.sign() * (forward + back)).sum(-1)


def _cdf_large(tau: Tensor, w: Tensor, nu: Tensor) -> Tensor:
    k_pi, nu_k = math.pi * _WAVES, nu[..., None]
    waves = 2 * k_pi * torch.sin(k_pi * w[..., None]) / (nu_k**2 + k_pi**2)
    decay = torch.exp(-(k_pi**2) / 2 * tau[..., None])
    tail = torch.exp(-nu * w - nu**2 * tau / 2) * (waves * decay).sum(-1)
    return probability_upper(-nu, 1 - w) - tail
