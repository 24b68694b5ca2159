"""Interleaved timing: on a shared machine only ratios of medians taken turn by turn in one run mean anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the 20% and 80% quantiles."""

    median: float
    low: float
    high: float


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _calls(function: Callable[[], object], seconds: float) -> int:
    """How many calls fill ``seconds``; also warms up."""
    function()
    _synchronise()
    start = time.perf_counter()
    function()
    _synchronise()
    return max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))


def interleave(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 15, seconds: float = 0.02
) -> dict[str, Timing]:
    """Time every function once a round, in turn, ``rounds`` times; each turn lasts about ``seconds``."""
    calls = {name: _calls(function, seconds) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            _synchronise()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {
        name: Timing(float(np.median(s)), *(float(q) for q in np.quantile(s, (0.2, 0.8))))
        for name, s in samples.items()
    }
