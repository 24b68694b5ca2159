"""Density, distribution and survival of the response time, differentiable, in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastdiff.backend import forced
from fastdiff.decision import direct, series
from fastdiff.decision.parameters import Parameters, as_tensor, is_upper, parameters
from fastdiff.decision.quadrature import START_NODES, TIME_NODES, Walk, log_start_mean, log_time_integral
from fastdiff.ops import first_passage_density

SLOPES = ("v", "a", "z", "t0", "sv")  # the parameters of log_pdf_and_slopes
_signature = inspect.signature(parameters)
_TIME = TIME_NODES[6.0]
_DIGITS_LEFT = 1e-5  # a difference from 1 that keeps a relative 1e-10
# Quadrature nodes that are held at once: about 1 MB for each of some 50 intermediate results.
_AT_ONCE = 1 << 17


def log_pdf(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    r"""Logarithm of the joint density of response time and choice.

    With t = rt - t0, tau = t / a^2, w = z / a and s = 1, at the lower boundary

    .. math::
        f(t) = \frac{1}{a^2 \sqrt{1 + s_v^2 t}}
               \exp\frac{s_v^2 a^2 w^2 - 2 v a w - v^2 t}{2 (1 + s_v^2 t)}\; g(\tau), \qquad
        g(\tau) = (2 \pi \tau^3)^{-1/2} \sum_{k=-\infty}^{\infty} (w + 2 k)\, e^{-(w + 2 k)^2 / 2 \tau}
                = \pi \sum_{k=1}^{\infty} k\, e^{-k^2 \pi^2 \tau / 2} \sin k \pi w

    The means over the starts z and the non-decision times t0 are by Gauss-Legendre quadrature over the part of their
    range in which f is, with a relative error below 1e-8.

    Args:
        rt: seconds, any shape.
        choice: 1 upper, 0 lower boundary; broadcasts against rt.
        model, named: v, a, z, t0, s, sv, sz, st0, z_mode, t0_mode as in :func:`fastdiff.decision.parameters`; they
            broadcast against rt, and gradients flow.

    Returns:
        The log density, of the broadcast shape, float64; -inf where rt <= t0. Its exp integrates to P(choice).

    Raises:
        FastdiffError: bad parameters, NaN, choices other than 0 and 1.

    Source: Navarro & Fuss 2009, "Fast and accurate calculations for first-passage times in Wiener diffusion models",
    eqs. 5 and 6; Tuerlinckx 2004 and Foster & Singmann 2021 for s_v.
    """
    if forced() is None and (found := direct.log_pdf(rt, choice, *model, **named)) is not None:
        return torch.from_numpy(found)
    p = parameters(*model, **named).in_noise_units()
    return log_density(as_tensor("rt", rt), is_upper(choice), p)


def log_pdf_and_slopes(rt: Any, choice: Any, *model: Any, **named: Any) -> tuple[Tensor, Tensor]:
    r""":func:`log_pdf` and its derivatives in one pass, for optimisers that know no PyTorch.

    With NumPy's float64 times [N] and plain numbers the compiled kernel is called without PyTorch, here and in
    :func:`log_pdf`: a call then costs about 2 µs and 30 to 40 ns a trial.

    Args: as :func:`log_pdf`.

    Returns:
        The log density, of the broadcast shape [...], and its derivatives by v, a, z, t0 and sv, in this order, as
        [5, ...], float64. Those by a are at the z that was given, relative or absolute. Both are constants to autograd.

    Raises:
        FastdiffError: as :func:`log_pdf`.
    """
    if forced() is None and (found := direct.log_pdf_and_slopes(rt, choice, *model, **named)) is not None:
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    return _log_pdf_and_slopes(rt, choice, dict(_signature.bind(*model, **named).arguments))


def _log_pdf_and_slopes(rt: Any, choice: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """By autograd, each parameter as a leaf of the whole shape."""
    defaults = {name: one.default for name, one in _signature.parameters.items()}
    with torch.inference_mode(False), torch.enable_grad():
        fixed = [as_tensor("rt", rt).detach().clone(), is_upper(choice).clone()]
        model: dict[str, Any] = {
            name: value if name.endswith("_mode") else as_tensor(name, value).detach()
            for name, value in (defaults | given).items()
        }
        shape = parameters(**model).shape  # or says what is wrong
        shape = np.broadcast_shapes(shape, *(x.shape for x in fixed))
        leaves = [model[name].expand(shape).clone().requires_grad_() for name in SLOPES]
        found = log_pdf(*fixed, **(model | dict(zip(SLOPES, leaves, strict=True))))
        slopes = torch.autograd.grad(found.sum(), leaves)
    return found.detach(), torch.stack(slopes)


def pdf(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    """Joint density of response time (per second) and choice: exp of :func:`log_pdf`, which has the details."""
    return log_pdf(rt, choice, *model, **named).exp()


def cdf(rt: Any, choice: Any, *model: Any, **named: Any) -> Tensor:
    r"""P(response time <= rt and choice): the integral of :func:`pdf`.

    Where neither sv nor sz nor st0 varies, in closed form: with nu = v a and x_k = w + 2 k, for small and large tau,

    .. math::
        F = \tfrac{1}{2} e^{-\nu w} \sum_k \operatorname{sgn} x_k \Big[
            e^{-|\nu x_k|} \operatorname{erfc} \frac{|x_k| - |\nu| \tau}{\sqrt{2 \tau}} +
            e^{ |\nu x_k|} \operatorname{erfc} \frac{|x_k| + |\nu| \tau}{\sqrt{2 \tau}} \Big]
          = P - 2 \pi e^{-\nu w - \nu^2 \tau / 2} \sum_{k \ge 1}
            \frac{k \sin k \pi w}{\nu^2 + k^2 \pi^2} e^{-k^2 \pi^2 \tau / 2}

    Otherwise by quadrature over time of the density, which has sv in closed form, with a relative error below 1e-8.
    Arguments, shapes and errors: as :func:`log_pdf`. Memory: less than 100 MB beside the result.

    Source: Blurton, Kesselmeier & Gondan 2012, "Fast and accurate calculations for cumulative first-passage time
    distributions in Wiener diffusion models", eqs. 3 and 7.
    """
    p = parameters(*model, **named).in_noise_units()
    t, upper = as_tensor("rt", rt), is_upper(choice)
    if not any(_varies(x) for x in (p.sv, p.sz, p.st0)):
        walk = _walk(upper, p)
        return series.distribution(t - p.t0, walk.v, walk.a, walk.w).clamp(0, 1)
    return _in_parts(_log_by_time, t, upper, p, 2 * _TIME).exp().clamp(max=1)


def survival(rt: Any, *model: Any, **named: Any) -> Tensor:
    """P(response time > rt), either boundary: the probability of a response missing at the deadline rt.

    Accurate to a relative 1e-8 also where it is tiny, which 1 - cdf is not. Arguments and errors: as :func:`log_pdf`.
    """
    p = parameters(*model, **named).in_noise_units()
    return log_survival(as_tensor("rt", rt), p).exp().clamp(max=1)


def log_density(t: Tensor, upper: Tensor, p: Parameters) -> Tensor:
    """:func:`log_pdf` of checked arguments, s = 1."""
    if not (_varies(p.sz) or _varies(p.st0)):
        return first_passage_density(t - p.t0, p.v, p.a, p.z / p.a, p.sv, upper)
    return _in_parts(_log_density, t, upper, p, _TIME if _varies(p.st0) else 1)


def log_survival(t: Tensor, p: Parameters) -> Tensor:
    """Logarithm of :func:`survival` of checked arguments, s = 1; 0 where nothing can have happened."""
    if not any(_varies(x) for x in (p.sv, p.sz, p.st0)):
        walks = [_walk(torch.tensor(up), p) for up in (False, True)]
        low, up = (series.distribution(t - p.t0, walk.v, walk.a, walk.w) for walk in walks)
        left = 1 - low - up
        if bool((left > _DIGITS_LEFT).all()):
            return torch.log(left)
    sides = [_in_parts(_log_after, t, torch.tensor(up), p, 2 * _TIME) for up in (False, True)]
    return torch.where(t > p.t0, torch.logaddexp(*sides), 0.0)


def _varies(width: Tensor) -> bool:
    return bool(width.any()) if width.dim() else width.item() != 0


def _walk(upper: Tensor, p: Parameters) -> Walk:
    w = p.z / p.a
    v, w = torch.where(upper, -p.v, p.v), torch.where(upper, 1 - w, w)
    return Walk(v, p.a, w, p.sv, p.sz / p.a)


def _log_density(t: Tensor, walk: Walk, st0: Tensor) -> Tensor:
    single = log_start_mean(t, walk)
    if not _varies(st0):
        return single
    varies = st0 > 0
    width = torch.where(varies, st0, 1.0)
    return torch.where(varies, log_time_integral(t - width, t, walk) - width.log(), single)


def _log_by_time(t: Tensor, walk: Walk, st0: Tensor) -> Tensor:
    """log P(rt <= t): the whole density before t - st0, and a linearly falling share of it until t."""
    early = log_time_integral(torch.zeros_like(t), t - st0, walk)
    if not _varies(st0):
        return early
    # The time left until t falls; seen from behind it is a ramp that rises.
    late = log_time_integral(t - st0, t, walk, ramp=(t, -1 / torch.where(st0 > 0, st0, 1.0)))
    return _log_sum(early, torch.where(st0 > 0, late, -math.inf))


def _log_after(t: Tensor, walk: Walk, st0: Tensor) -> Tensor:
    """log P(rt > t)."""
    late = log_time_integral(t, torch.full_like(t, math.inf), walk)
    if not _varies(st0):
        return late
    some = log_time_integral(t - st0, t, walk, ramp=(t - st0, 1 / torch.where(st0 > 0, st0, 1.0)))
    return _log_sum(late, torch.where(st0 > 0, some, -math.inf))


def _log_sum(x: Tensor, y: Tensor) -> Tensor:
    """log(exp(x) + exp(y)), with gradients also where either is -inf."""
    total = torch.logaddexp(x.clamp_min(-1e300), y.clamp_min(-1e300))
    return torch.where(torch.maximum(x, y) > -math.inf, total, -math.inf)


def _in_parts(
    function: Callable[[Tensor, Walk, Tensor], Tensor], t: Tensor, upper: Tensor, p: Parameters, nodes: int
) -> Tensor:
    """function(t - t0, walk, st0) of everything as [N], so many points at once that memory is bounded.

    With gradients each part is computed again in the backward, so that this holds there too.
    """
    walk = _walk(upper, p)
    given = (t - p.t0, *vars(walk).values(), p.st0)
    shape = np.broadcast_shapes(*(x.shape for x in given))
    columns = [x.expand(shape).reshape(-1) for x in given]
    if _varies(p.sz):
        nodes *= START_NODES

    def run(t: Tensor, v: Tensor, a: Tensor, w: Tensor, sv: Tensor, sz: Tensor, st0: Tensor) -> Tensor:
        return function(t, Walk(v, a, w, sv, sz), st0)

    size = max(1, _AT_ONCE // nodes)
    if len(columns[0]) <= size:
        return run(*columns).reshape(shape)
    again = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    results = []
    for part in zip(*(x.split(size) for x in columns), strict=True):
        results.append(checkpoint(run, *part, use_reentrant=False) if again else run(*part))
    return torch.cat(results).reshape(shape)
