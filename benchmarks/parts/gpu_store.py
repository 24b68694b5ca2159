"""What the parts of ``make gpu`` share: the results file, the clock, and the time that is left."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdiff.bench import machine, results
from fastdiff.bench.clock import FLUSH_BYTES, Call, Timing, Turn, by_events, repeated, timings
from parts import ROOT


class Store:
    """The results file: rows by key, written after each one, so that a run that is cut off loses nothing.

    A row that is there is not measured again, unless the sources of fastdiff or the versions have changed since.
    """

    def __init__(self, path: Path, about: dict[str, Any], *, keep: bool = False) -> None:
        self.path, self.about = path, about
        self.rows: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        if path.exists():
            before = json.loads(path.read_text())
            decisive = ("processor", "torch", "triton", "sources")
            if keep or all(before["about"].get(k) == about.get(k) for k in decisive):
                self.rows = before["rows"]
            else:
                print(f"{path.name} is of other sources, versions or another device: measured anew")

    def put(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        self.skipped.pop(key, None)
        self.write()

    def skip(self, key: str, reason: str) -> None:
        self.skipped[key] = reason
        self.write()

    def part(self, name: str) -> dict[str, Any]:
        """The rows of one part, by the rest of their keys."""
        return {k.partition("/")[2]: row for k, row in self.rows.items() if k.startswith(f"{name}/")}

    def write(self) -> None:
        results.write(self.path, self.about, rows=self.rows, skipped=self.skipped)
        copy_out(self.path)


def copy_out(path: Path) -> None:
    """A second copy under $OUT, where that is set."""
    if os.environ.get("OUT"):
        shutil.copyfile(path, Path(os.environ["OUT"]) / path.name)


@dataclass(frozen=True)
class Context:
    """Where and how long to measure."""

    device: str
    dry: bool  # tiny sizes and few rounds, to see that everything runs
    store: Store
    deadline: float  # of this part, on time.monotonic's scale
    rounds: int = 10
    seconds: float = 0.02  # of a turn

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def wanted(self, key: str, seconds: float = 1.0) -> bool:
        """Whether to measure a row now: it is missing, and there is time for it."""
        if key in self.store.rows:
            return False
        if self.left < seconds:
            self.store.skip(key, "out of time; call again to go on")
            return False
        return True

    def measured(self, key: str, seconds: float, measure: Callable[[], None]) -> None:
        """Measure a row if it is wanted. One row's failure is its own: it is reported, the rest is measured."""
        if not self.wanted(key, seconds):
            return
        try:
            measure()
        except Exception as error:
            self.store.skip(key, first_line(error))
        finally:
            if self.device != "cpu":
                torch.cuda.empty_cache()

    @functools.cached_property
    def turn(self) -> Callable[[Call], Turn]:
        """The clock: on a GPU CUDA events around each call, with cold caches."""
        if self.device == "cpu":
            return functools.partial(repeated, seconds=self.seconds)
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
        return lambda call: by_events(call, self.seconds, flush)

    def interleave(self, functions: Mapping[str, Call], rounds: int | None = None) -> dict[str, Timing]:
        """Every function once a round, in turn: medians with 20% and 80% quantiles."""
        turns = {name: self.turn(function) for name, function in functions.items()}
        return timings(turns, min(self.rounds, rounds or self.rounds))


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def about(device: str, dry: bool) -> dict[str, Any]:
    """The machine, and a digest of everything that is measured."""
    gpu = {"capability": "", "cuda": str(torch.version.cuda), "triton": machine.version("triton")}
    return gpu | machine.describe(device) | {"sources": sources(), "dry": dry}


def sources() -> str:
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("fastdiff/**/*.py"), *ROOT.glob("csrc/**/*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
