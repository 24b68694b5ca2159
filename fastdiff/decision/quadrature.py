"""Means over parameters that vary between trials, each over the part of its range where the integrand matters.

The drift (normal) has a closed form in the density. The start (uniform) is averaged by Gauss-Legendre over w, the time
(a uniform t0, or a distribution function) over log t, both between the points at which the integrand has fallen by
exp(-DROP) from its largest value. In these coordinates it is smooth whatever the parameters, so that a fixed number of
nodes leaves a relative error below 1e-8 (docs/decision.md, tests/decision/test_variability.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastdiff.ops import first_passage_density

START_NODES = 17
TIME_NODES = {0.5: 14, 1.5: 22, 4.0: 34, 6.0: 44, math.inf: 88}  # length of the part in log t -> nodes
DROP = 32.0
_SCAN = 64  # points at which the integrand's size is estimated


@dataclass(frozen=True)
class Walk:
    """The model as seen from the lower boundary, s = 1: [...] each, w = z / a, sz = width of w's range."""

    v: Tensor
    a: Tensor
    w: Tensor
    sv: Tensor
    sz: Tensor

    def with_axis(self) -> Walk:
        """A last axis of size one for nodes."""
        return replace(self, **{name: x[..., None] for name, x in vars(self).items()})


def log_start_mean(t: Tensor, p: Walk) -> Tensor:
    """Logarithm of the density at the lower boundary, averaged over drift and start."""
    if not bool(p.sz.any()):
        return first_passage_density(t, p.v, p.a, p.w, p.sv)
    low, high = _start_window(torch.where(t > 0, t, 1.0), p)
    x, weights = legendre(START_NODES)
    width = high - low
    w = low[..., None] + width[..., None] * x
    more = p.with_axis()
    values = first_passage_density(t[..., None], more.v, more.a, w, more.sv)
    # Bounded, because the gradient of -inf alone is NaN. Parameters that do not vary have the weight 1.
    varies = p.sz > 0
    share = torch.where(varies, width, 1.0) / torch.where(varies, p.sz, 1.0)
    total = torch.logsumexp(values.clamp_min(-1e300) + weights.log(), -1) + share.log()
    return torch.where(t > 0, total, -math.inf)


def log_time_integral(
    begin: Tensor, end: Tensor, p: Walk, ramp: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """log of the integral of the density over begin < t < end (end may be infinite); -inf where there is nothing.

    ramp = (t_zero, slope) multiplies the density by slope (t - t_zero), which must be positive in between.
    """
    some = end > begin.clamp_min(0)
    begin, end = torch.where(some, begin.clamp_min(0), 0.5), torch.where(some, end, 1.0)
    low, high = _time_window(begin, end, p)
    total = torch.full_like(low, -math.inf)
    least = 0.0
    for longest, nodes in TIME_NODES.items():
        here = some & (high - low > least) & (high - low <= longest)
        least = longest
        if bool(here.any()):
            part = Walk(*(value[here] for value in vars(p).values()))
            cut = None if ramp is None else (ramp[0][here], ramp[1][here])
            total = total.masked_scatter(here, _log_panel(low[here], high[here], part, cut, nodes))
    return total


def _log_panel(low: Tensor, high: Tensor, p: Walk, ramp: tuple[Tensor, Tensor] | None, nodes: int) -> Tensor:
    x, weights = legendre(nodes)
    y = low[..., None] + (high - low)[..., None] * x
    t = y.exp()
    values = log_start_mean(t, p.with_axis()) + y + weights.log()
    if ramp is not None:
        zero, slope = ramp
        values = values + ((t - zero[..., None]) * slope[..., None]).clamp_min(1e-300).log()
    return torch.logsumexp(values, -1) + (high - low).log()


def _start_window(t: Tensor, p: Walk) -> tuple[Tensor, Tensor]:
    """Range of starts that matters for the density at t, which is below w exp(-slope w - curvature w^2 / 2)."""
    low, high = p.w - p.sz / 2, p.w + p.sz / 2
    with torch.no_grad():
        growth = 1 + p.sv**2 * t
        curvature, slope = p.a**2 / (t * growth), p.v * p.a / growth
        peak = torch.minimum(torch.maximum(-slope / curvature, low), high)
        fall = curvature * peak + slope

        def reach(fall: Tensor) -> Tensor:
            fall = fall.clamp_min(0)
            return (torch.sqrt(fall**2 + 2 * DROP * curvature) - fall) / curvature

        first, last = peak - reach(-fall), peak + reach(fall)
    return torch.where(first > low, first, low), torch.where(last < high, last, high)


def _time_window(begin: Tensor, end: Tensor, p: Walk) -> tuple[Tensor, Tensor]:
    """Logarithms of the times between which the density matters, within (begin, end).

    Its logarithm is estimated on a grid by -(x + v t)^2 / 2 t (1 + sv^2 t) - pi^2 t / 2 a^2, x being the nearest start.
    """
    with torch.no_grad():
        near, far = (p.w - p.sz / 2) * p.a, (p.w + p.sz / 2) * p.a
        high = torch.minimum(end, begin + 0.25 * DROP * p.a**2)
        # Before `reached`, even a drift six deviations higher does not arrive: (x - |v| t)^2 > 2.6 DROP t (1 + sv^2 t).
        root = math.sqrt(2.6 * DROP)
        towards = (-p.v).clamp_min(0) + root * p.sv
        reached = (2 * near / (root + torch.sqrt(root**2 + 4 * towards * near))) ** 2
        low = torch.maximum(begin, 1 / (1 / high + 1 / reached))
        grid = low.log()[..., None] + (high / low).log()[..., None] * torch.linspace(
            0, 1, _SCAN, dtype=torch.float64
        )
        t, v = grid.exp(), p.v[..., None]
        x = torch.minimum(torch.maximum(-v * t, near[..., None]), far[..., None])
        size = -((x + v * t) ** 2) / (2 * t * (1 + p.sv[..., None] ** 2 * t))
        size = size - math.pi**2 / 2 * t / p.a[..., None] ** 2
        there = size > size.amax(-1, keepdim=True) - DROP
        first = (there.double().argmax(-1) - 1).clamp_min(0)
        last = (_SCAN - there.flip(-1).double().argmax(-1)).clamp_max(_SCAN - 1)
        first, last = (grid.gather(-1, i[..., None])[..., 0] for i in (first, last))
        cut_low = first > begin.clamp_min(1e-300).log() + 1e-12
        cut_high = last < end.log() - 1e-12
    # If the range was not cut, the ends are the caller's and keep their gradients.
    bounded = torch.where(cut_high, 1.0, end)
    return (
        torch.where(cut_low, first, torch.where(cut_low, 1.0, begin).log()),
        torch.where(cut_high, last, bounded.log()),
    )


@functools.cache
def legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and weights that sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def start_nodes(steepest: float) -> tuple[Tensor, Tensor]:
    """For a mean of something like exp(steepest x) over -1/2 < x < 1/2: nodes there, weights that sum to 1."""
    nodes, weights = legendre(min(96, 16 + 8 * math.ceil(abs(steepest) / 8)))
    return nodes - 0.5, weights


def drift_nodes(p_v: Tensor, p_a: Tensor, p_sv: Tensor) -> tuple[Tensor, Tensor]:
    """For means over N(v, sv) of what is analytic for |Im v| < pi / a: drifts [..., K], weights [..., K] that sum to 1.

    The trapezoidal rule with steps h leaves out exp(-2 pi^2 / (a h)) and, of the normal density itself,
    exp(-2 pi^2 sv^2 / h^2): both are below 1e-11. Beyond 7.5 sv it also covers where improbable responses come from.
    """
    with torch.no_grad():
        sv, a, v = (x[..., None] for x in torch.broadcast_tensors(p_sv, p_a, p_v))
        wide = 7.5 * sv
        low = torch.maximum(v - wide - 2 * sv**2 * a, torch.minimum(v, torch.zeros(())) - wide)
        high = torch.minimum(v + wide + 2 * sv**2 * a, torch.maximum(v, torch.zeros(())) + wide)
        step = torch.minimum(0.6 / a, 0.8 * sv).clamp_min(1e-300)
        count = int(torch.ceil((high - low) / step).max()) + 1
        x = (low - v + (high - low) * torch.linspace(0, 1, count, dtype=torch.float64)) / sv.clamp_min(1e-300)
        weights = torch.exp(-0.5 * x**2)
        weights = weights / weights.sum(-1, keepdim=True)
    return p_v[..., None] + p_sv[..., None] * x, weights
