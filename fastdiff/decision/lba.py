r"""The linear ballistic accumulator: the first of n accumulators that reaches b decides (Brown & Heathcote 2008).

    x_i = k_i + d_i t,  k_i ~ U(0, A),  d_i ~ N(mean_v_i, sd_v_i);  rt = t0_i + first time at which an x_i >= b

Parameters have rtdists' names: A, b, t0, mean_v, sd_v, st0; drifts are positive (``posdrift``) unless told otherwise.
With w = A / (t sd_v), z = (b - t mean_v) / (t sd_v) at its upper and z - w at its lower end, an accumulator has

.. math:: f(t) = \frac1A \int_{z-w}^{z} (v + s y) \varphi(y) dy, \qquad 1 - F(t) = \frac1w \int_{z-w}^{z} \Phi(y) dy

which are closed forms for wide windows and Gauss-Legendre sums for narrow ones (small A, late t), so that no digits are
lost. Everything is in float64 and differentiable.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr, ndtri

from fastdiff.decision.design import label_conditions
from fastdiff.decision.fit import minimise
from fastdiff.decision.parameters import as_tensor
from fastdiff.decision.problem import FAILED, curvature
from fastdiff.decision.quadrature import legendre
from fastdiff.decision.simulate import Trials
from fastdiff.errors import FastdiffError

_NARROW = 0.5  # deviations: windows below are summed
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_PANELS, _REACH = 128, 50.0  # of integrals over log t: exp(-50) of the time is neglected
_LAST = 1e9  # seconds, instead of infinity
_AT_ONCE = 1 << 20  # evaluations of a density held in memory


@dataclass(frozen=True)
class _Race:
    """Parameters whose last dimension is the accumulators'."""

    A: Tensor
    b: Tensor
    t0: Tensor
    mean_v: Tensor
    sd_v: Tensor
    st0: float
    posdrift: bool

    @property
    def accumulators(self) -> int:
        return self.mean_v.shape[-1]

    def log_reach(self) -> Tensor:
        """log P(drift > 0), which truncation divides by."""
        return log_ndtr(self.mean_v / self.sd_v) if self.posdrift else torch.zeros_like(self.mean_v)

    def at(self, trials: Tensor) -> _Race:
        """The parameters of some trials."""
        parts = {
            n: x[trials] if x.dim() == 2 and len(x) > 1 else x
            for n, x in vars(self).items()
            if torch.is_tensor(x)
        }
        return _Race(**parts, st0=self.st0, posdrift=self.posdrift)


def log_pdf(rt: Any, response: Any, A: Any, b: Any, t0: Any, mean_v: Any, sd_v: Any = 1.0, *, st0: float = 0.0,
            posdrift: bool = True) -> Tensor:  # fmt: skip
    """Logarithm of the joint density of response time and response, [N]; minus infinity at or below t0.

    Args:
        rt: [N] seconds.
        response: [N], 1 ... n, the number of the accumulator that was first.
        A, b, t0, mean_v, sd_v: numbers, [n] with one value for each accumulator, or [N, n] or [N, 1] for each trial;
            mean_v has all n. A: largest start; b: threshold, at least A; t0: lower edge of the non-decision time.
        st0: full width of the non-decision time's uniform range, the same for all accumulators.
        posdrift: drifts are normal given that they are positive (rtdists' default); otherwise none of them may be, and
            then there is no response, which makes the density integrate to less than 1.

    Raises:
        FastdiffError: not finite; A or t0 negative, b below A, sd_v not positive; responses other than 1 ... n.

    Source: Brown & Heathcote 2008, "The simplest complete model of choice response time".
    """
    race, times, winner = _checked(rt, response, A, b, t0, mean_v, sd_v, st0=st0, posdrift=posdrift)
    if race.st0 == 0:
        return _log_density(times, winner, race)
    shifts, weights = legendre(32)
    width = (times - race.t0.amin(-1)).clamp(0, race.st0)
    at = times[:, None] - width[:, None] * shifts
    rows = torch.arange(len(times)).repeat_interleave(len(shifts))
    values = _log_density(at.flatten(), winner[rows], race.at(rows)).view(at.shape)
    return torch.logsumexp(values + weights.log(), -1) + (width / race.st0).log()


def pdf(rt: Any, response: Any, *model: Any, **named: Any) -> Tensor:
    """Joint density of response time and response, [N]; see :func:`log_pdf`."""
    return log_pdf(rt, response, *model, **named).exp()


def log_likelihood(rt: Any, response: Any, *model: Any, **named: Any) -> Tensor:
    """Sum of :func:`log_pdf`, differentiable in the parameters."""
    return log_pdf(rt, response, *model, **named).sum()


@torch.no_grad()
def cdf(rt: Any, response: Any, *model: Any, **named: Any) -> Tensor:
    """P(response, response time <= rt), [N], at infinity the probability of the response.

    The density's integral over the logarithm of the decision time, to 1e-9. Arguments and errors: :func:`log_pdf`.
    """
    given = torch.as_tensor(rt, dtype=torch.float64).clamp_max(_LAST)
    race, times, winner = _checked(given, response, *model, **named)
    shifts, mass = legendre(32) if race.st0 else (torch.zeros(1), torch.ones(1))
    x, weights = _panels()
    found = []
    for part in torch.arange(len(times)).split(max(1, _AT_ONCE // len(x))):
        total, here = torch.zeros(len(part), dtype=torch.float64), replace(race.at(part), st0=0.0)
        first = here.t0.amin(-1)
        for shift, share in zip(shifts.tolist(), mass.tolist(), strict=True):
            span = (times[part] - race.st0 * shift - first).clamp_min(0)
            at = (first[:, None] + span[:, None] * x.exp()).flatten()
            rows = torch.arange(len(part)).repeat_interleave(len(x))
            density = _log_density(at, winner[part][rows], here.at(rows)).exp().view(len(part), -1)
            total += share * span * (density * x.exp() * weights).sum(-1)
        found.append(total)
    return torch.cat(found)


def simulate(
    A: Any, b: Any, t0: Any, mean_v: Any, sd_v: Any = 1.0, *, st0: float = 0.0, posdrift: bool = True,
    n: int | None = None, seed: int | None = None,
) -> Trials:  # fmt: skip
    """n trials: rt [n] seconds and choice [n], the number 1 ... of the accumulator that was first.

    Without ``posdrift`` no drift may be positive; such a trial has choice -1 and an infinite rt.

    Args:
        n: number of trials; left out, as many as the parameters have.
        seed: random seed; left out, a fresh one, which the result has as ``seed``.
        A, b, t0, mean_v, sd_v, st0, posdrift: as in :func:`log_pdf`.

    Raises:
        FastdiffError: bad parameters or n.
    """
    race = _race(A, b, t0, mean_v, sd_v, st0, posdrift)
    n = max(len(x) for x in vars(race).values() if torch.is_tensor(x)) if n is None else n
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise FastdiffError(f"n must be a whole number of at least 1, got {n!r}")
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    rng, shape = np.random.default_rng(seed), (n, race.accumulators)
    start, upper, late = (torch.from_numpy(rng.random(shape[:k])) for k in (2, 2, 1))
    # The drift's upper tail probability is uniform, below that of a drift of 0 if it must be positive.
    drift = race.mean_v - race.sd_v * ndtri((1 - upper) * race.log_reach().exp())
    times = race.t0 + torch.where(drift > 0, (race.b - race.A * start) / drift, math.inf)
    rt, winner = times.min(-1)
    trials = Trials(rt + race.st0 * late, torch.where(rt.isfinite(), winner + 1, -1).to(torch.int8))
    trials.seed = seed
    return trials


@dataclass(frozen=True)
class LBAFit:
    """A fit of the linear ballistic accumulator; sd_v is fixed and sets the unit of length."""

    conditions: tuple[str, ...]
    estimates: dict[str, float]  # A, b, t0 and mean_v[accumulator] or mean_v[condition, accumulator]
    standard_errors: dict[str, float]
    log_likelihood: float
    trials: int
    converged: bool

    @property
    def aic(self) -> float:
        return 2 * len(self.estimates) - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        return len(self.estimates) * math.log(self.trials) - 2 * self.log_likelihood

    def of(self, condition: str | None = None) -> dict[str, Any]:
        """The parameters of one condition, as arguments of this module's functions.

        Raises:
            FastdiffError: no such condition.
        """
        condition = self.conditions[0] if condition is None else condition
        if condition not in self.conditions:
            raise FastdiffError(f"no condition {condition!r}; there are: {', '.join(self.conditions)}")
        drifts = np.array(list(self.estimates.values())[3:]).reshape(len(self.conditions), -1)
        shared = {name: self.estimates[name] for name in ("A", "b", "t0")}
        return {**shared, "mean_v": drifts[self.conditions.index(condition)].tolist()}

    def summary(self) -> str:
        """A table of the estimates."""
        lines = ["parameter              estimate  standard error"]
        for name, value in self.estimates.items():
            lines.append(f"{name:<20} {value:10.4f}  {self.standard_errors[name]:14.4f}")
        lines.append(f"log-likelihood  {self.log_likelihood:.2f}   AIC {self.aic:.2f}   BIC {self.bic:.2f}")
        return "\n".join([*lines, f"optimiser       {'converged' if self.converged else 'stopped'}"])


def fit(
    rt: Any, response: Any, condition: Sequence[Any] | None = None, *, sd_v: Any = 1.0, posdrift: bool = True
) -> LBAFit:
    """Fit A, b, t0 and, for each condition and accumulator, mean_v, by maximum likelihood.

    Args:
        rt: [N] seconds.
        response: [N], 1 ... n.
        condition: [N] labels.
        sd_v: a number or one for each accumulator; fixed, since it sets the unit.
        posdrift: as in :func:`log_pdf`.

    Raises:
        FastdiffError: SciPy missing; bad data; fewer than two responses in them.
    """
    times, winner = as_tensor("rt", rt).flatten(), as_tensor("response", response).flatten()
    accumulators = int(winner.max()) if len(winner) else 0
    if accumulators < 2:
        raise FastdiffError("a race needs at least two responses, numbered 1, 2, ...")
    labels, codes = label_conditions(condition, len(times))
    fastest = float(times.min())

    def natural(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start = x[0].exp()
        return start, start + x[1].exp(), fastest * torch.sigmoid(x[2]), x[3:].view(len(labels), accumulators)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(x, requires_grad=True)
        start, b, t0, drifts = natural(leaf)
        value = -log_likelihood(times, winner, start, b, t0, drifts[codes], sd_v, posdrift=posdrift)
        value.backward()
        assert leaf.grad is not None
        fine = bool(value.isfinite()) and bool(leaf.grad.isfinite().all())
        return (float(value.detach()), leaf.grad.numpy()) if fine else (FAILED, np.zeros_like(x))

    _checked(times, winner, 1.0, 1.0, 0.0, torch.ones(accumulators), sd_v, posdrift=posdrift)
    # Times of a unit's walk at a drift of about b over the median time, the more frequent response's the larger.
    shares = torch.stack([(winner[codes == c, None] == torch.arange(1, accumulators + 1)).double().mean(0)
                          for c in range(len(labels))])  # fmt: skip
    scale = float(as_tensor("sd_v", sd_v).mean())
    pace = 2.5 * scale * (0.4 + shares)
    distance = float(times.median() - 0.7 * fastest) * float(pace.amax(1).mean())
    begin = np.concatenate([[math.log(distance / 2), math.log(distance / 2), 0.8], pace.flatten().numpy()])
    found = minimise(objective, begin, len(times))
    covariance = np.linalg.pinv(curvature(objective, found.x), rcond=1e-12, hermitian=True)
    slopes: Any = torch.autograd.functional.jacobian(
        lambda x: torch.cat([part.flatten() for part in natural(x)]), torch.from_numpy(found.x)
    )
    variances = np.diag(slopes.numpy() @ covariance @ slopes.numpy().T)
    before = [""] if condition is None else [f"{label}, " for label in labels]
    names = ["A", "b", "t0", *(f"mean_v[{c}{i + 1}]" for c in before for i in range(accumulators))]
    values = torch.cat([part.flatten() for part in natural(torch.from_numpy(found.x))]).tolist()
    errors = np.sqrt(np.where(variances > 0, variances, np.nan)).tolist()
    return LBAFit(labels, dict(zip(names, values, strict=True)), dict(zip(names, errors, strict=True)),
                  -float(found.fun), len(times), bool(found.success))  # fmt: skip


def _log_density(times: Tensor, winner: Tensor, race: _Race) -> Tensor:
    """Logarithm of the joint density at times [N] of winners [N], numbered from 0, without st0."""
    late = (times[:, None] - race.t0).broadcast_to(len(times), race.accumulators)
    began = late > 0
    t = torch.where(began, late, 1.0)
    width, high = race.A / (t * race.sd_v), (race.b - t * race.mean_v) / (t * race.sd_v)
    first = _log_first(t, width, high, race) - race.log_reach()
    alive = _survival(width, high, race).clamp_min(1e-300).log()
    first = torch.where(began, first, -math.inf)
    alive = torch.where(began, alive, 0.0)
    winners = torch.nn.functional.one_hot(winner, race.accumulators).bool()
    return torch.where(winners, first, alive).sum(-1)


def _log_first(t: Tensor, width: Tensor, high: Tensor, race: _Race) -> Tensor:
    """log f, before division by the probability of a positive drift."""
    narrow, low = width < _NARROW, high - width
    y, weights = legendre(8)
    at = high[..., None] - torch.where(narrow, width, 0.0)[..., None] * y
    speed = race.mean_v[..., None] + race.sd_v[..., None] * at  # the drift that arrives now from this start
    summed = torch.logsumexp(speed.clamp_min(1e-300).log() - 0.5 * at**2 + weights.log(), -1)
    summed = summed - _HALF_LOG_2PI - t.log() - race.sd_v.log()
    # v (Phi(high) - Phi(low)) + s (phi(low) - phi(high)), over phi at the end that is nearer to 0.
    one_sided = (low > 0) | (high < 0)
    near = torch.where(one_sided, torch.where(low > 0, low, -high), 0.0)
    far = torch.where(one_sided, torch.where(low > 0, high, -low), 1.0)
    fall = -0.5 * (far - near) * (far + near)
    mills = math.sqrt(math.pi / 2) * (erfcx(near / math.sqrt(2)) - fall.exp() * erfcx(far / math.sqrt(2)))
    drop = -torch.expm1(fall) * torch.where(low > 0, 1.0, -1.0)
    outside = (race.mean_v * mills + race.sd_v * drop).clamp_min(1e-300).log() - 0.5 * near**2 - _HALF_LOG_2PI
    bell = torch.exp(-0.5 * low**2) - torch.exp(-0.5 * high**2)
    inside = race.mean_v * (_normal(high) - _normal(low)) + race.sd_v * bell * math.exp(-_HALF_LOG_2PI)
    inside = torch.where(one_sided, 1.0, inside).clamp_min(1e-300).log()
    wide = (
        torch.where(one_sided, outside, inside) - torch.where(narrow, 1.0, race.A.broadcast_to(t.shape)).log()
    )
    return torch.where(narrow, summed, wide)


def _survival(width: Tensor, high: Tensor, race: _Race) -> Tensor:
    """P(not there yet), given a positive drift if it must be: a mean of Phi over the window."""
    narrow, y = width < _NARROW, legendre(8)
    at = high[..., None] - torch.where(narrow, width, 0.0)[..., None] * y[0]
    summed = (_normal(at) * y[1]).sum(-1)
    closed = (_integral_of_phi(high) - _integral_of_phi(high - width)) / torch.where(narrow, 1.0, width)
    alive = torch.where(narrow, summed, closed)
    if not race.posdrift:
        return alive
    return (alive - _normal(-race.mean_v / race.sd_v)) / race.log_reach().exp()


def _normal(z: Tensor) -> Tensor:
    """The normal distribution; torch's own has no digits below -8."""
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def _integral_of_phi(z: Tensor) -> Tensor:
    return z * _normal(z) + torch.exp(-0.5 * z**2 - _HALF_LOG_2PI)


@functools.cache
def _panels() -> tuple[Tensor, Tensor]:
    """Nodes and weights between -_REACH and 0."""
    nodes, weights = legendre(12)
    step = _REACH / _PANELS
    left = -_REACH + step * torch.arange(_PANELS, dtype=torch.float64)
    return (left[:, None] + step * nodes).flatten(), (step * weights).repeat(_PANELS)


def _checked(
    rt: Any, response: Any, A: Any, b: Any, t0: Any, mean_v: Any, sd_v: Any = 1.0, *, st0: float = 0.0,
    posdrift: bool = True,
) -> tuple[_Race, Tensor, Tensor]:  # fmt: skip
    """Parameters, times [N] and winners [N] numbered from 0."""
    race, times, given = (
        _race(A, b, t0, mean_v, sd_v, st0, posdrift),
        as_tensor("rt", rt),
        as_tensor("response", response),
    )
    try:
        times, given = (x.flatten() for x in torch.broadcast_tensors(times, given))
    except RuntimeError:
        raise FastdiffError(
            f"rt and response must have one shape, got {list(times.shape)} and {list(given.shape)}"
        ) from None
    wrong = (given != given.round()) | (given < 1) | (given > race.accumulators)
    if bool(wrong.any()):
        raise FastdiffError(
            f"response must be the number of an accumulator, 1 to {race.accumulators}, got {float(given[wrong][0]):g}"
        )
    for name, x in vars(race).items():
        if torch.is_tensor(x) and len(x) not in (1, len(times)):
            raise FastdiffError(f"{name} must have one row for each trial: {len(times)}, got {len(x)}")
    return race, times, given.long() - 1


def _race(A: Any, b: Any, t0: Any, mean_v: Any, sd_v: Any, st0: float, posdrift: bool) -> _Race:
    given = {"A": A, "b": b, "t0": t0, "mean_v": mean_v, "sd_v": sd_v}
    parts = {name: torch.atleast_2d(as_tensor(name, x)) for name, x in given.items()}
    count = parts["mean_v"].shape[-1]
    if count < 2:
        raise FastdiffError("mean_v must have a drift for each of at least two accumulators")
    for name, x in parts.items():
        if x.dim() != 2 or x.shape[-1] not in (1, count):
            raise FastdiffError(
                f"{name} must have one value, or {count} in its last dimension, as mean_v, got shape {list(x.shape)}"
            )
    for holds, message in (
        (parts["A"] >= 0, "A, the largest start, must be at least 0"),
        (parts["b"] >= parts["A"], "b, the threshold, must be at least A"),
        (parts["b"] > 0, "b, the threshold, must be positive"),
        (parts["t0"] >= 0, "the non-decision time t0 must be at least 0"),
        (parts["sd_v"] > 0, "sd_v must be positive"),
    ):
        if not bool(holds.all()):
            raise FastdiffError(message)
    if not 0 <= st0 < math.inf:
        raise FastdiffError(f"st0 must be a number of at least 0, got {st0}")
    return _Race(**parts, st0=float(st0), posdrift=posdrift)
