"""How long a sampling run will take, and how much memory: from one timed step at the size of its batches."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastdiff.choices import SAMPLER, STEPS
from fastdiff.scalars import duration

if TYPE_CHECKING:
    import torch

LONG = 3600.0  # seconds after which a run is warned of
WORTH_IT = 40  # calls of a run after which a second step is timed, since the first one also warms up


@dataclass(frozen=True)
class Work:
    """The model calls of one model in a run.

    Args:
        step: makes one step of a batch.
        calls: number of calls for a batch.
        batches: number of batches, of which the last may be a part of one.
    """

    step: Callable[[], object]
    calls: int
    batches: float

    @property
    def count(self) -> float:
        return self.calls * self.batches

    def timed(self) -> float:
        """Seconds of one step."""
        seconds = _seconds(self.step)
        return seconds if self.count < WORTH_IT else min(seconds, _seconds(self.step))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole run, and the largest memory of the process so far in bytes."""

    seconds: float
    memory: int
    works: tuple[tuple[Work, float], ...]  # with the seconds of a step

    def in_words(self) -> str:
        calls = " and ".join(
            f"{work.calls * math.ceil(work.batches)} model calls of {duration(step)}"
            for work, step in self.works
        )
        return f"{duration(self.seconds)} ({calls}), {self.memory / 2**30:.1f} GiB of memory"


def estimate(works: Sequence[Work], device: torch.device) -> Estimate:
    """Time one step of each model. Its result must be there, not only on its way, when ``step`` returns."""
    timed = tuple((work, work.timed()) for work in works)
    return Estimate(sum(step * work.count for work, step in timed), peak_memory(device), timed)


def peak_memory(device: torch.device) -> int:
    """The largest memory of this process so far, in bytes: of the GPU, or of the whole process on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def advice(found: Estimate, sampler: str, calls: int, dtype: str, device: torch.device) -> str:
    """One sentence for a run that takes long: what would make it shorter."""
    import torch

    ways = []
    if calls > STEPS:
        few = duration(found.seconds * STEPS / calls)
        better = "" if sampler == SAMPLER else f"--sampler {SAMPLER} "
        ways.append(f"{better}--steps {STEPS} (about {few})")
    if dtype == "float32" and (device.type == "cuda" or _multiplies_bfloat16()):
        ways.append("--dtype bfloat16")
    if device.type == "cpu":
        ways.append("--device cuda" if torch.cuda.is_available() else "a machine with a GPU (--device cuda)")
    ways.append("fewer images (--n)")
    return f"this will take {duration(found.seconds)}; shorter with {', '.join(ways[:-1])} or {ways[-1]}"


def _multiplies_bfloat16() -> bool:
    """True if this processor multiplies bfloat16 faster than float32."""
    try:
        from fastdiff import _C  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return False
    return (_C.bfloat16_rate() or 0) > 1
