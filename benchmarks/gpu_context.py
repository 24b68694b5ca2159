"""What the parts of ``make gpu`` share: the device, the clock, the results file, and the time that is left."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Timing

import fastdiff
from fastdiff.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WARM_UP = 4
FLUSH_BYTES = 1 << 28  # larger than any L2 cache
HEAD_START = (
    1_000_000  # cycles for which the device waits before a call, so that its launches are not in the time
)


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
            same = all(before["about"].get(k) == about[k] for k in ("device", "torch", "triton", "sources"))
            if same or keep:
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": self.about, "rows": self.rows, "skipped": self.skipped}
        with atomic_path(self.path) as path:
            Path(path).write_text(json.dumps(content, indent=1) + "\n")
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

    def interleave(
        self, functions: Mapping[str, Callable[[], object]], rounds: int | None = None
    ) -> dict[str, Timing]:
        """Every function once a round, in turn; each call by itself, with cold caches. Medians, 20% and 80%."""
        flush = torch.empty(1 if self.dry else FLUSH_BYTES, dtype=torch.int8, device=self.device)
        calls = {name: self._calls(function) for name, function in functions.items()}
        samples: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(min(self.rounds, rounds or self.rounds)):
            for name, function in functions.items():
                samples[name] += self._turn(function, calls[name], flush)
        return {
            name: Timing(float(np.median(s)), *(float(q) for q in np.quantile(s, (0.2, 0.8))))
            for name, s in samples.items()
        }

    def _calls(self, function: Callable[[], object]) -> int:
        for _ in range(WARM_UP):
            (once,) = self._turn(function, 1, None)
            if once > self.seconds:  # a call that long has no more to warm up
                break
        return min(50, max(1, int(self.seconds / max(once, 1e-6))))

    def _turn(self, function: Callable[[], object], calls: int, flush: torch.Tensor | None) -> list[float]:
        """Seconds of each of some calls. On a GPU by events, all recorded before the first is waited for."""
        if self.device == "cpu":
            return [_seconds(function) for _ in range(calls)]
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(calls)]
        torch.cuda.synchronize()
        for start, end in events:
            if flush is not None:
                flush.zero_()
            torch.cuda._sleep(HEAD_START)
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def about(device: str, dry: bool) -> dict[str, Any]:
    """Where it was measured: what a reader needs to judge the numbers."""
    on_gpu = device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu ({platform.machine()})",
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else "",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": installed("triton"),
        "fastdiff": fastdiff.__version__,
        "python": platform.python_version(),
        "sources": sources(),
        "date": datetime.date.today().isoformat(),
        "dry": dry,
    }


def sources() -> str:
    """A digest of everything that is measured."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("fastdiff/**/*.py"), *ROOT.glob("csrc/**/*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
