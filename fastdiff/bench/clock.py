"""The clock: implementations are timed in alternation in one run, so that ratios are valid on a shared machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Call = Callable[[], object]
Turn = Callable[[], Sequence[float]]  # makes one turn of a side -> seconds of a call, one or more samples

WARM_UP = 4  # calls
MOST_CALLS = 50  # of a turn by events
FLUSH_BYTES = 1 << 28  # larger than any GPU's last cache
# Cycles for which a GPU waits before a call, so that the time to launch its kernels is not measured.
HEAD_START = 1_000_000


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the 20% and 80% quantiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        low, high = np.quantile(samples, (0.2, 0.8))
        return cls(float(np.median(samples)), float(low), float(high))


def interleave(
    functions: Mapping[str, Call], *, rounds: int = 15, seconds: float = 0.02
) -> dict[str, Timing]:
    """Time every function once in each of ``rounds`` rounds; each turn lasts about ``seconds``."""
    return timings({name: repeated(function, seconds) for name, function in functions.items()}, rounds)


def timings(turns: Mapping[str, Turn], rounds: int) -> dict[str, Timing]:
    """Medians and quantiles of :func:`take_turns`."""
    return {name: Timing.of(samples) for name, samples in take_turns(turns, rounds).items()}


def take_turns(
    turns: Mapping[str, Turn], rounds: int, *, at_least: int = 1, limit: float = math.inf
) -> dict[str, list[float]]:
    """The samples of every side, each of which makes one turn in a round.

    Args:
        turns: functions that make one turn of a side, by name.
        rounds: largest number of rounds.
        at_least: number of rounds that are made even after the limit.
        limit: seconds after which no further round begins.
    """
    samples: dict[str, list[float]] = {name: [] for name in turns}
    end = time.perf_counter() + limit
    for done in range(rounds):
        if done >= at_least and time.perf_counter() >= end:
            break
        for name, turn in turns.items():
            samples[name] += turn()
    return samples


def repeated(
    function: Call,
    seconds: float = 0.0,
    *,
    calls: int | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Turn:
    """A turn whose one sample is the mean of several calls. Warms up.

    Args:
        function: the function to time, including its work on a GPU.
        seconds: approximate duration of a turn, which has at least one call.
        calls: number of calls in a turn, in place of ``seconds``.
        timer: the timer; ``time.process_time`` and ``time.thread_time`` exclude other processes.
    """

    def turn(calls: int) -> list[float]:
        synchronize()
        start = timer()
        for _ in range(calls):
            function()
        synchronize()
        return [(timer() - start) / calls]

    function()
    if calls is None:
        calls = max(1, int(seconds / max(turn(1)[0], 1e-7))) if seconds else 1
    return lambda: turn(calls)


def by_events(function: Call, seconds: float, flush: torch.Tensor) -> Turn:
    """A turn on a GPU: each call by itself, between two CUDA events, with cold caches. Warms up.

    All events of a turn are recorded before the first is waited for.

    Args:
        function: the function to time.
        seconds: approximate total duration of the timed calls of a turn.
        flush: a tensor of ``FLUSH_BYTES``, written before each call to empty the caches.
    """

    def turn(calls: int, cold: bool = True) -> list[float]:
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(calls)]
        torch.cuda.synchronize()
        for start, end in events:
            if cold:
                flush.zero_()
            torch.cuda._sleep(HEAD_START)
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]

    once = 0.0
    for _ in range(WARM_UP):
        (once,) = turn(1, cold=False)
        if once > seconds:  # a call that long has no more to warm up
            break
    calls = min(MOST_CALLS, max(1, int(seconds / max(once, 1e-6))))
    return lambda: turn(calls)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
