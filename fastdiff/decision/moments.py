"""Accuracy, mean and variance in closed form, and their inversion to parameters by the EZ method."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.decision.parameters import Parameters, as_tensor, parameters
from fastdiff.decision.quadrature import drift_nodes, start_nodes
from fastdiff.decision.series import probability_upper
from fastdiff.errors import FastdiffError


class Moments(NamedTuple):
    """Probability of the upper boundary, and moments of the response time in seconds and seconds squared."""

    p_upper: Tensor
    mean: Tensor
    variance: Tensor
    mean_upper: Tensor
    variance_upper: Tensor
    mean_lower: Tensor
    variance_lower: Tensor


def moments(*model: Any, **named: Any) -> Moments:
    r"""P(upper), and the mean and variance of the response time, of all trials and of those at either boundary.

    With s = 1 and C(y) = (y coth y - 1) / y^2, given the upper boundary (the lower one: z becomes a - z)

    .. math::
        E[T] = a^2 C(v a) - z^2 C(v z), \qquad
        \operatorname{Var} T = -2 \Big( a^4 \frac{C'(v a)}{2 v a} - z^4 \frac{C'(v z)}{2 v z} \Big)

    which are the first two cumulants of the Laplace transform sinh(kz) / sinh(ka), k^2 = v^2 + 2 lambda. The two
    boundaries are combined by the law of total variance, without cancellation. Quadrature over sv (trapezoidal) and sz
    (Gauss-Legendre) has as many nodes as a relative error below 1e-8 needs; st0 adds st0^2 / 12 to the variance and
    st0 / 2 to the mean.

    Args and errors: those of :func:`fastdiff.decision.parameters`. Differentiable. Shapes: as these broadcast.

    Source: Cox & Miller 1965, "The Theory of Stochastic Processes", section 5.7; Wagenmakers, van der Maas & Grasman
    2007, eqs. 5 to 9, for a start in the middle.
    """
    p = parameters(*model, **named).in_noise_units()
    mean_t0, variance_t0 = p.t0 + p.st0 / 2, p.st0**2 / 12
    nothing = torch.zeros(p.shape, dtype=torch.float64)
    p, weights = _spread(p)
    share = probability_upper(p.v * p.a, p.z / p.a)
    other = probability_upper(-p.v * p.a, 1 - p.z / p.a)
    sides = []
    for probability, z_side in ((share, p.z), (other, p.a - p.z)):
        mean, variance = _conditional(p.v, p.a, z_side)
        w = weights * probability
        total = w.sum(-1)
        some = total > 0  # not so improbable that it underflows
        w = torch.where(some[..., None], w / torch.where(some, total, 1.0)[..., None], weights)
        first = (w * mean).sum(-1)
        sides.append((total, first, (w * (variance + (mean - first[..., None]) ** 2)).sum(-1)))
    (up, mean_up, var_up), (low, mean_low, var_low) = sides
    mean = up * mean_up + low * mean_low
    variance = up * var_up + low * var_low + up * low * (mean_up - mean_low) ** 2
    means = (m + mean_t0 for m in (mean, mean_up, mean_low))
    variances = (x + variance_t0 for x in (variance, var_up, var_low))
    (m, m_up, m_low), (x, x_up, x_low) = means, variances
    return Moments(up + nothing, m, x, m_up, x_up, m_low, x_low)


class EZ(NamedTuple):
    """Parameters by the EZ method."""

    v: Tensor
    a: Tensor
    t0: Tensor


def ez(p_upper: Any, mean: Any, variance: Any, s: Any = 1.0) -> EZ:
    r"""Drift, boundary and non-decision time from three statistics, for a start in the middle and no variability.

    With L = logit(P), s = 1 and y = -v a,

    .. math::
        v = \operatorname{sgn}(P - \tfrac12) \Big[ \frac{L (P^2 L - P L + P - \frac12)}{\mathrm{Var}} \Big]^{1/4},
        \quad a = L / v, \quad t_0 = \mathrm{mean} - \frac{a}{2 v} \frac{1 - e^y}{1 + e^y}

    Args:
        p_upper: share of trials at the upper boundary; broadcasts against the others.
        mean, variance: of the response time (seconds, seconds squared).
        s: the noise; v and a are in its units.

    Raises:
        FastdiffError: p_upper 0, 1 or 1/2, for which there is no solution; variance or s not positive; not finite.

    Source: Wagenmakers, van der Maas & Grasman 2007, "An EZ-diffusion model for response time and accuracy", eqs. 5
    to 9, which also describe the usual corrections of the shares 0, 1/2 and 1.
    """
    named = {"p_upper": p_upper, "mean": mean, "variance": variance, "s": s}
    p, mean, variance, s = (as_tensor(name, value) for name, value in named.items())
    if not bool(((p > 0) & (p < 1) & (p != 0.5)).all()):
        raise FastdiffError(
            "ez needs a share p_upper between 0 and 1 other than 1/2; move it by half a trial, "
            "e.g. 1 - 1 / (2 n) in place of 1"
        )
    if not bool(((variance > 0) & (s > 0)).all()):
        raise FastdiffError("ez needs a positive variance of the response time and a positive noise s")
    logit = torch.logit(p)
    v = torch.sign(p - 0.5) * (logit * (p * p * logit - p * logit + p - 0.5) / variance) ** 0.25
    a = logit / v
    y = -v * a
    return EZ(v * s, a * s, mean - a / (2 * v) * -torch.expm1(y) / (1 + torch.exp(y)))


def _spread(p: Parameters) -> tuple[Parameters, Tensor]:
    """A last axis of nodes for all parameters, and the nodes' weights, which sum to 1."""
    values = {name: x[..., None] for name, x in vars(p).items()}
    weights = torch.ones(1, dtype=torch.float64)
    if bool(p.sv.any()):
        values["v"], weights = drift_nodes(p.v, p.a, p.sv)
    if bool(p.sz.any()):
        with torch.no_grad():
            steepest = 2 * float(((values["v"].abs().amax(-1)) * p.sz).max())
        nodes, node_weights = start_nodes(steepest)
        count = values["v"].shape[-1]
        values["z"] = (values["z"] + values["sz"] * nodes).repeat_interleave(count, -1)
        values["v"] = values["v"].repeat(*[1] * p.v.dim(), len(nodes)) if count > 1 else values["v"]
        weights = (node_weights[:, None] * weights[..., None, :]).flatten(-2)
    return Parameters(**values), weights


def _conditional(v: Tensor, a: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the decision time given the upper boundary, s = 1."""
    c_a, slope_a = _c_and_slope(v * a)
    c_z, slope_z = _c_and_slope(v * z)
    return a**2 * c_a - z**2 * c_z, -2 * (a**4 * slope_a - z**4 * slope_z)


# (y coth y - 1) / y^2 in powers of y^2: 2^(2n) B_2n / (2n)! for n = 1, 2, ...
_SERIES = (
    1 / 3,
    -1 / 45,
    2 / 945,
    -1 / 4725,
    2 / 93555,
    -1382 / 638512875,
    4 / 18243225,
    -3617 / 162820783125,
)
_NEAR = 0.3  # below which the series, whose first missing term is then below 1e-15, replaces the functions


def _c_and_slope(y: Tensor) -> tuple[Tensor, Tensor]:
    """C(y) = (y coth y - 1) / y^2 and dC / d(y^2)."""
    small = y.abs() < _NEAR
    q = torch.where(small, y, 0.0) ** 2
    series = sum(c * q**n for n, c in enumerate(_SERIES))
    series_slope = sum(n * c * q ** (n - 1) for n, c in enumerate(_SERIES) if n)
    y = torch.where(small, 1.0, y).abs()
    coth, csch2 = 1 / torch.tanh(y), 4 * torch.exp(-2 * y) / torch.expm1(-2 * y) ** 2
    value = (y * coth - 1) / y**2
    slope = ((coth - y * csch2) / y**2 - 2 * value / y) / (2 * y)
    return torch.where(small, series, value), torch.where(small, series_slope, slope)
