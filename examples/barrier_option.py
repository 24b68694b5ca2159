"""Barrier options priced by the decision model's walker, against closed forms.

    python examples/barrier_option.py --lower 92 [--upper 130] [--kind put] [--knock in] [--rebate 3] [--steps 50]

Under Black and Scholes the log-price is a walk with drift: the same dx = v dt + s dW, its boundaries at the barriers
(one far away if there is but one), maturity as the deadline. Watched only at the steps of a grid, the walk slips
through a barrier unseen ("euler"), as if it were 0.5826 s sqrt(dt) further away (Broadie, Glasserman & Kou 1997); moved
nearer by as much, the grid prices the continuous barrier to higher order. The bridge between the steps sees every
crossing, and "exact" has no steps. Greeks are by likelihood ratio: scores are the density's gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import tyro
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from fastdiff.decision import cdf, log_pdf, survival
from fastdiff.errors import FastdiffError
from fastdiff.ops import first_passage
from fastdiff.ops.decision import PARAMETERS, Passage
from fastdiff.ops.philox import sample_seeds

Method = Literal["exact", "bridge", "euler"]
SHIFT = 0.5826  # -zeta(1/2) / sqrt(2 pi)
FAR = 20.0  # deviations to a boundary that is not there
_AT_ONCE = 1 << 17  # trials whose Greeks are computed at once
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
            raise FastdiffError(
                "spot, strike, volatility and maturity must be positive, the rebate at least 0"
            )
        if self.lower is None and self.upper is None:
            raise FastdiffError("give a lower or an upper barrier")
        if not 0 < (self.lower or self.spot / 2) < self.spot < (self.upper or math.inf):
            raise FastdiffError(
                f"barriers must lie around the spot {self.spot:g}, got {self.lower} and {self.upper}"
            )

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


def vanilla(
    o: Option, spot: Tensor, years: Tensor, sigma: Tensor | None = None, rate: Tensor | None = None
) -> Tensor:
    """Black and Scholes with a dividend yield, of spot and time left."""
    sigma = torch.tensor(o.volatility, dtype=torch.float64) if sigma is None else sigma
    rate = torch.tensor(o.rate, dtype=torch.float64) if rate is None else rate
    sign = 1.0 if o.kind == "call" else -1.0
    scale = sigma * years.clamp_min(1e-12).sqrt()
    d1 = ((spot / o.strike).log() + (rate - o.dividend + sigma**2 / 2) * years) / scale
    first, second = _normal_cdf(sign * d1), _normal_cdf(sign * (d1 - scale))
    return sign * (spot * (-o.dividend * years).exp() * first - o.strike * (-rate * years).exp() * second)


def _normal_cdf(x: Tensor) -> Tensor:
    return cast(Tensor, torch.special.ndtr(x))


def closed_form(o: Option) -> float:
    """Price: the killed log-normal density, a sum over images, integrated against the payoff; in = vanilla - out.

    One barrier is two of which one is far away, so that every strike and barrier is one formula.
    Source: Reiner & Rubinstein 1991; Kunitomo & Ikeda 1992; values in Haug 2007, sections 4.17.1 and 4.17.3,
    and QuantLib's are in tests/test_examples.py.
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
            above, below = ((math.log(x / low) - shifted) / scale for x in (end, begin))
            inside = _normal_cdf(above) - _normal_cdf(below)
            total = total + (weight * torch.exp(power * mean + power**2 * scale**2 / 2) * inside).sum()
        return total * low**power

    out = sign * (moment(1) - o.strike * moment(0)) * math.exp(-o.rate * o.maturity)
    if o.knock == "out":
        return float(out) + o.rebate * _paid_at_hit(o)
    whole = vanilla(
        o, torch.tensor(o.spot, dtype=torch.float64), torch.tensor(o.maturity, dtype=torch.float64)
    )
    never = 1 - float(cdf(o.maturity, [0, 1], **_walk(o)).sum())
    return float(whole - out) + o.rebate * math.exp(-o.rate * o.maturity) * never


def discretely_watched(o: Option, steps: int) -> float:
    """Closed form for barriers that are watched ``steps`` times only, by Broadie, Glasserman & Kou's correction."""
    return closed_form(_moved(o, SHIFT * o.volatility * math.sqrt(o.maturity / steps)))


def simulated(
    o: Option, method: Method = "bridge", steps: int = 50, trials: int = 1_000_000, seed: int = 0,
    correct: bool = False,
) -> dict[str, Estimate]:  # fmt: skip
    """price, delta, vega and rho; of "bridge" the price has the vanilla option as a control variate.

    "euler" gives the price alone: its walks do not have the density that the scores are of. correct: move its barriers
    nearer, so that it prices continuous ones.
    """
    moved = _moved(o, -SHIFT * o.volatility * math.sqrt(o.maturity / steps)) if correct else o
    model = {**_walk(moved), "t0": 0.0, "sv": 0.0, "sz": 0.0, "st0": 0.0}
    model["z"] *= model["a"]
    columns = [torch.tensor(float(model[n])).expand(trials) for n in PARAMETERS]
    ended = first_passage(
        sample_seeds(trials, seed), *columns, method=method, dt=o.maturity / steps, t_max=o.maturity,
    )  # fmt: skip
    pieces: dict[str, list[Tensor]] = {}
    for begin in range(0, trials, _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        walks = Walks(
            moved, ended.rt[part], ended.choice[part], ended.position[part], exact=method == "exact"
        )
        found = {"price": walks.value().detach()} if method == "euler" else walks.greeks()
        for name, values in found.items():
            pieces.setdefault(name, []).append(values)
    trial = {name: torch.cat(values) for name, values in pieces.items()}
    # With the mean as a baseline: a score has the mean zero.
    value = trial.pop("price")
    means = {"price": _controlled(o, ended, value, seed) if method == "bridge" else value}
    means |= {
        n: direct + (value - value.mean()) * trial[f"score of {n}"]
        for n, direct in trial.items()
        if n in _LEAVES
    }
    return {n: Estimate(float(x.mean()), float(x.std()) / math.sqrt(trials)) for n, x in means.items()}


_LEAVES = {"delta": "spot", "vega": "volatility", "rho": "rate"}


class Walks:
    """What walks that have ended are worth, and how probable they were, as functions of what the Greeks are for."""

    def __init__(self, o: Option, rt: Tensor, choice: Tensor, position: Tensor, exact: bool) -> None:
        self.o, self.exact = o, exact
        self.hit, self.side = choice >= 0, (choice == 1).long()
        self.years = torch.where(self.hit, rt.double(), o.maturity).clamp(1e-12, o.maturity)
        # An exact walk that is under way is nowhere in particular (NaN); its value is found from those that ended.
        self.x = torch.where(self.hit | exact, 0.0, position.double())
        self.leaf = {
            field: torch.full_like(self.years, getattr(o, field)).requires_grad_()
            for field in _LEAVES.values()
        }

    def greeks(self) -> dict[str, Tensor]:
        """price, each Greek's direct part, and its score, of each trial."""
        value, density = self.value(), self.log_density()
        found = {"price": value.detach()}
        leaves = list(self.leaf.values())
        for prefix, of in (("", value), ("score of ", density)):
            slopes = torch.autograd.grad(of.sum(), leaves, allow_unused=True, materialize_grads=True)
            for name, slope in zip(_LEAVES, slopes, strict=True):
                found[prefix + name] = slope
        return found

    def value(self) -> Tensor:
        o, rate = self.o, self.leaf["rate"]
        low, high = o.ends
        whole = vanilla(
            o, self.leaf["spot"], torch.full_like(rate, o.maturity), self.leaf["volatility"], rate
        )
        end = (-rate * o.maturity).exp()
        at_hit = (-rate * self.years).exp()
        if self.exact:
            barrier = torch.where(self.side == 1, high, low).double()
            later = vanilla(o, barrier, o.maturity - self.years, self.leaf["volatility"], rate)
            out = whole - torch.where(self.hit, at_hit * later, 0.0)
        else:
            out = torch.where(self.hit, 0.0, end * _payoff(o, low * self.x.exp()))
        if o.knock == "out":
            return out + torch.where(self.hit, o.rebate * at_hit, 0.0)
        return whole - out + torch.where(self.hit, 0.0, o.rebate * end)

    def log_density(self) -> Tensor:
        """Log density of the time and side of a hit, or of a walk's position at maturity."""
        o, sigma = self.o, self.leaf["volatility"]
        low, high = o.ends
        start, width = (self.leaf["spot"] / low).log(), math.log(high / low)
        drift = self.leaf["rate"] - o.dividend - sigma**2 / 2
        hits = log_pdf(self.years, self.side, drift, width, start, s=sigma, z_mode="absolute")
        if self.exact:
            alive = survival(o.maturity, drift[:1], width, start[:1], s=sigma[:1], z_mode="absolute").log()
        else:
            scale = (sigma * math.sqrt(o.maturity))[:, None]
            away = 2 * _IMAGES * width
            total = torch.zeros_like(self.years)
            for sign in (1.0, -1.0):
                mean = sign * start[:, None] + away
                total = total + sign * torch.exp(-(((self.x[:, None] - mean) / scale) ** 2) / 2).sum(1)
            moved = drift * (self.x - start) - drift**2 * o.maturity / 2
            alive = moved / sigma**2 + total.clamp_min(1e-300).log() - scale[:, 0].log()
        return torch.where(self.hit, hits, alive)


def _controlled(o: Option, ended: Passage, value: Tensor, seed: int) -> Tensor:
    """Less what the vanilla option of the same walks is off by; walks that have hit go on from the barrier."""
    low, high = o.ends
    hit = ended.choice >= 0
    left = torch.where(hit, o.maturity - ended.rt.double(), 0.0).clamp_min(0)
    begin = torch.where(hit, (ended.choice == 1) * math.log(high / low), ended.position.double())
    noise = torch.randn(len(value), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    price = low * torch.exp(begin + _drift(o) * left + o.volatility * left.sqrt() * noise)
    control = math.exp(-o.rate * o.maturity) * _payoff(o, price)
    off = control - float(vanilla(o, torch.tensor(o.spot, dtype=torch.float64), torch.tensor(o.maturity)))
    slope = ((value - value.mean()) * (control - control.mean())).mean() / control.var()
    return value - slope * off


def _payoff(o: Option, price: Tensor) -> Tensor:
    return ((price - o.strike) if o.kind == "call" else (o.strike - price)).clamp_min(0)


def _paid_at_hit(o: Option) -> float:
    """E[exp(-rate t); hit at t <= maturity]: the distribution of a walk whose drift has the discount inside."""
    drift, total = _drift(o), 0.0
    faster = math.sqrt(drift**2 + 2 * o.rate * o.volatility**2)
    for side, end in enumerate(o.ends):
        tilt = (drift - faster) * math.log(end / o.spot) / o.volatility**2
        total += math.exp(tilt) * float(cdf(o.maturity, side, **{**_walk(o), "v": faster}))
    return total


def _drift(o: Option) -> float:
    return o.rate - o.dividend - o.volatility**2 / 2


def _walk(o: Option) -> dict[str, float]:
    """The decision model of the log-price; z as a fraction of a."""
    low, high = o.ends
    width = math.log(high / low)
    return {"v": _drift(o), "a": width, "z": math.log(o.spot / low) / width, "s": o.volatility}


def _moved(o: Option, shift: float) -> Option:
    """Barriers further from the spot by a factor exp(shift)."""
    lower = None if o.lower is None else o.lower * math.exp(-shift)
    upper = None if o.upper is None else o.upper * math.exp(shift)
    return replace(o, lower=lower, upper=upper)


def main(option: OmitArgPrefixes[Option], steps: int = 50, trials: int = 1_000_000, seed: int = 0) -> None:
    """Price a barrier option in closed form and by simulation, with its Greeks.

    Args:
        steps: of the grid, until maturity.
        trials: simulated prices.
        seed: of the simulation.
    """
    exact = closed_form(option)
    print(option)
    print(f"closed form                {exact:.4f}")
    print(
        f"  watched {steps:5d} times      {discretely_watched(option, steps):.4f}   (Broadie, Glasserman & Kou)"
    )
    ways: list[tuple[Method, bool]] = [("exact", False), ("bridge", False), ("euler", False), ("euler", True)]
    for method, correct in ways:
        name = f"{method}, moved barriers" if correct else method
        found = simulated(option, method, steps, trials, seed, correct)
        price = found.pop("price")
        others = "   ".join(f"{n} {x.value:.4f} +- {x.error:.4f}" for n, x in found.items())
        print(
            f"{name:<22}  {price.value:8.4f} +- {price.error:.4f}   off by {price.value - exact:+.4f}   {others}"
        )


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastdiffError as error:
        raise SystemExit(f"barrier_option: {error}") from None
