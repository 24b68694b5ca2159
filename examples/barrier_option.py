"""Barrier options priced by the decision model's walker, against closed forms.

    python examples/barrier_option.py --lower 92 [--upper 130] [--kind put] [--knock in] [--rebate 3] [--steps 50]

Under Black and Scholes the log-price is a walk with drift: the same dx = v dt + s dW, its boundaries at the barriers
(one far away if there is but one), maturity as the deadline. Watched only at the steps of a grid, the walk slips through
a barrier unseen ("euler"), as if it were 0.5826 s sqrt(dt) further away (Broadie, Glasserman & Kou 1997); moved nearer
by as much, the grid prices the continuous barrier to higher order. The bridge between the steps sees every crossing, and
"exact" has no steps. Greeks are by likelihood ratio: the scores are gradients of the decision model's own density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from torch import Tensor

from fastdiff.decision import cdf, log_pdf
from fastdiff.errors import FastdiffError
from fastdiff.ops import first_passage
from fastdiff.sampling.request import sample_seeds

Method = Literal["exact", "bridge", "euler"]
SHIFT = 0.5826  # -zeta(1/2) / sqrt(2 pi)
FAR = 20.0  # deviations to a boundary that is not there
_IMAGES = torch.arange(-6.0, 7.0, dtype=torch.float64)


@dataclass(frozen=True)
class Option:
    """Pays max(+-(S - K), 0) at maturity if (out: unless) the price touches a barrier before."""

    kind: Literal["call", "put"] = "call"
    knock: Literal["out", "in"] = "out"
    lower: float | None = 92.0
    """Barrier below the spot."""
    upper: float | None = None
    """Barrier above the spot."""
    spot: float = 100.0
    strike: float = 100.0
    rebate: float = 0.0
    """Paid when an out option is knocked out, or at maturity if an in option never is in."""
    rate: float = 0.05
    """A year, continuously compounded."""
    dividend: float = 0.0
    """Yield a year."""
    volatility: float = 0.25
    """Per root of a year."""
    maturity: float = 0.5
    """Years."""

    def __post_init__(self) -> None:
        if min(self.spot, self.strike, self.volatility, self.maturity) <= 0 or self.rebate < 0:
            raise FastdiffError("spot, strike, volatility and maturity must be positive, the rebate at least 0")
        if self.lower is None and self.upper is None:
            raise FastdiffError("give a lower or an upper barrier")
        if not 0 < (self.lower or self.spot / 2) < self.spot < (self.upper or math.inf):
            raise FastdiffError(f"barriers must lie around the spot {self.spot:g}, got {self.lower} and {self.upper}")

    @property
    def ends(self) -> tuple[float, float]:
        """Both boundaries as prices."""
        far = math.exp(FAR * self.volatility * math.sqrt(self.maturity))
        return self.lower or self.spot / far, self.upper or self.spot * far


@dataclass(frozen=True)
class Estimate:
    """A simulated number."""

    value: float
    error: float  # standard error


def vanilla(o: Option, spot: Tensor, years: Tensor, sigma: Tensor | float | None = None) -> Tensor:
    """Black and Scholes with a dividend yield, of spot and time left."""
    sigma = torch.as_tensor(o.volatility if sigma is None else sigma, dtype=torch.float64)
    sign = 1.0 if o.kind == "call" else -1.0
    scale = sigma * years.clamp_min(1e-12).sqrt()
    d1 = ((spot / o.strike).log() + (o.rate - o.dividend + sigma**2 / 2) * years) / scale
    first, second = torch.special.ndtr(sign * d1), torch.special.ndtr(sign * (d1 - scale))
    return sign * (spot * (-o.dividend * years).exp() * first - o.strike * (-o.rate * years).exp() * second)


def closed_form(o: Option) -> float:
    """Price: the killed log-normal density, a sum over images, integrated against the payoff; in = vanilla - out.

    One barrier is two of which one is far away, so that every strike and barrier is one formula.
    Source: Reiner & Rubinstein 1991; Kunitomo & Ikeda 1992; values in Haug 2007, sections 4.17.1 and 4.17.3.
    """
    low, high = o.ends
    if o.kind == "call":
        begin, end, sign = min(max(o.strike, low), high), high, 1.0
    else:
        begin, end, sign = low, max(min(o.strike, high), low), -1.0
    drift, scale = _drift(o), o.volatility * math.sqrt(o.maturity)
    start, width = math.log(o.spot / low), math.log(high / low)

    def moment(power: float) -> Tensor:
        """E[S^power; the walk is still under way and S between begin and end]."""
        total = torch.zeros((), dtype=torch.float64)
        for side in (1.0, -1.0):
            away = 2 * _IMAGES * width + (side - 1) * start  # from the start to its image
            weight = side * torch.exp(drift * away / o.volatility**2)
            mean = start + away + drift * o.maturity
            shifted = mean + power * scale**2
            inside = _normal((math.log(end / low) - shifted) / scale) - _normal((math.log(begin / low) - shifted) / scale)
            total = total + (weight * torch.exp(power * mean + power**2 * scale**2 / 2) * inside).sum()
        return total * low**power

    out = sign * (moment(1) - o.strike * moment(0)) * math.exp(-o.rate * o.maturity)
    if o.knock == "out":
        return float(out) + o.rebate * _paid_at_hit(o)
    whole = vanilla(o, torch.tensor(o.spot, dtype=torch.float64), torch.tensor(o.maturity, dtype=torch.float64))
    never = 1 - float(cdf(o.maturity, [0, 1], **_walk(o)).sum())
    return float(whole - out) + o.rebate * math.exp(-o.rate * o.maturity) * never


def discretely_watched(o: Option, steps: int) -> float:
    """Closed form for barriers that are watched ``steps`` times only, by Broadie, Glasserman & Kou's correction."""
    return closed_form(_moved(o, SHIFT * o.volatility * math.sqrt(o.maturity / steps)))


def simulated(
    o: Option, method: Method = "bridge", steps: int = 50, trials: int = 1_000_000, seed: int = 0,
    correct: bool = False, control: bool = True,
) -> dict[str, Estimate]:  # fmt: skip
    """price, delta, vega and rho.

    correct: move the barriers of "euler" nearer, so that it prices continuous ones. control: take the vanilla option,
    whose price is known, as a control variate ("bridge" and "exact").
    """
    moved = _moved(o, -SHIFT * o.volatility * math.sqrt(o.maturity / steps)) if correct else o
    model = _walk(moved)
    absolute = {**model, "z": model["z"] * model["a"], "t0": 0.0, "sv": 0.0, "sz": 0.0, "st0": 0.0}
    ended = first_passage(
        sample_seeds(trials, seed), **{n: torch.tensor(float(x)).expand(trials) for n, x in absolute.items()},
        method=method, dt=o.maturity / steps, t_max=o.maturity,
    )  # fmt: skip
    hit = ended.choice >= 0
    years = torch.where(hit, ended.rt.double(), o.maturity).clamp(1e-9, o.maturity)
    # An exact walk that is under way has no position: it is worth what it is worth on average, see _out_by_hits.
    x = torch.where(hit, torch.nan, ended.position.double())
    leaves = {n: torch.tensor(getattr(o, n), dtype=torch.float64, requires_grad=True) for n in _GREEKS}
    if method == "exact":
        values, mean = _out_by_hits(moved, leaves, years, hit, ended.choice == 1)
    else:
        values, mean = _out_by_survivors(moved, leaves, years, hit, x), torch.zeros((), dtype=torch.float64)
    scores = _scores(moved, leaves, years, hit, ended.choice == 1, x)
    found = {}
    known = _vanilla_greeks(o)
    for name, per_trial in {"price": values.detach(), **_greeks(values, mean, leaves, scores)}.items():
        sign = 1.0 if o.knock == "out" else -1.0
        trial = sign * per_trial
        constant = 0.0 if o.knock == "out" else known[name]
        if control and name == "price" and method == "bridge":
            trial, constant = _controlled(o, moved, trial, years, hit, ended.choice == 1, x, seed, constant)
        found[name] = Estimate(constant + float(trial.mean()), float(trial.std()) / math.sqrt(trials))
    return found
