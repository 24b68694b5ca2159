"""A knock-out option priced by the decision model's walker.

    python examples/barrier_option.py [--steps 50] [--trials 1000000]

A down-and-out call pays max(S - K, 0) at time T unless the price S has touched the barrier H < K on the way. Under
Black and Scholes the log-price is a walk with drift: the same dx = v dt + s dW, with one boundary at the barrier, the
other far away, and T as the deadline. Watched only at the steps of a grid, the walk slips through the barrier
unseen ("euler"), and the price comes out too high by what a barrier 0.58 s sqrt(dt) further away would give
(Broadie, Glasserman & Kou 1997); the bridge between the steps sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import tyro

from fastdiff.ops import first_passage
from fastdiff.sampling.request import sample_seeds


@dataclass(frozen=True)
class Option:
    """A down-and-out call."""

    spot: float = 100.0
    strike: float = 100.0
    barrier: float = 92.0
    rate: float = 0.05  # a year, continuously compounded
    volatility: float = 0.25  # per root of a year
    maturity: float = 0.5  # years


def closed_form(o: Option) -> float:
    """Price for a barrier below the strike (Merton 1973; Reiner & Rubinstein 1991): call minus reflected call."""
    scale = o.volatility * math.sqrt(o.maturity)
    exponent = 2 * o.rate / o.volatility**2 - 1

    def call(spot: float) -> float:
        d1 = (math.log(spot / o.strike) + (o.rate + o.volatility**2 / 2) * o.maturity) / scale
        discounted = o.strike * math.exp(-o.rate * o.maturity)
        return spot * _normal_cdf(d1) - discounted * _normal_cdf(d1 - scale)

    return call(o.spot) - (o.barrier / o.spot) ** exponent * call(o.barrier**2 / o.spot)


def simulated(o: Option, method: str, steps: int, trials: int, seed: int = 0) -> tuple[float, float]:
    """Price and its standard error."""
    start = math.log(o.spot / o.barrier)
    far = start + 20 * o.volatility * math.sqrt(o.maturity)  # never reached
    model = {"v": o.rate - o.volatility**2 / 2, "a": far, "z": start, "t0": 0, "s": o.volatility}
    model |= {"sv": 0, "sz": 0, "st0": 0}
    end = first_passage(
        sample_seeds(trials, seed),
        **{name: torch.tensor(float(value)).expand(trials) for name, value in model.items()},
        method=method,  # type: ignore[arg-type]
        dt=o.maturity / steps,
        t_max=o.maturity,
    )
    price = o.barrier * torch.exp(end.position.double())
    payoff = torch.where(end.choice == -1, (price - o.strike).clamp_min(0), 0.0) * math.exp(
        -o.rate * o.maturity
    )
    return float(payoff.mean()), float(payoff.std()) / math.sqrt(trials)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def main(steps: int = 50, trials: int = 1_000_000) -> None:
    """Price one option three ways.

    Args:
        steps: of the grid, until maturity.
        trials: simulated prices.
    """
    option = Option()
    exact = closed_form(option)
    print(f"{option}\nclosed form  {exact:.4f}")
    for method in ("bridge", "euler"):
        price, error = simulated(option, method, steps, trials)
        print(f"{method:<11}  {price:.4f} +- {error:.4f}   off by {price - exact:+.4f} ({steps} steps)")


if __name__ == "__main__":
    tyro.cli(main)
