"""How fast is the decision model on one core? Trials and densities per second, and their bias, turn by turn.

    python benchmarks/decision.py [--peers PYTHON] [--rounds N]

Prints Markdown and writes ``benchmarks/results/decision-<machine>.json``. PYTHON is an interpreter in which
ssm-simulators, pyddm and hddm-wfpt are installed; without it only the baselines written here are measured. All sides
run on one thread and are timed in seconds of processor time, so that what else runs on the machine counts for little.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from parts import RESULTS
from parts.decision_peers import SAMPLES, SV, TRIALS, A, V, times

from fastdiff.bench import machine, results
from fastdiff.bench.clock import take_turns, timings
from fastdiff.bench.report import table
from fastdiff.decision import moments, pdf, simulate

MEAN = float(moments(V, A).mean)
NUMBERS = (1, 10, 30, 60, 100, 200, 400, 1000, 10_000)
Run = Callable[[], tuple[float, float]]  # -> seconds, and the mean time or a density to check


@dataclass(frozen=True)
class Side:
    """One way to do the work."""

    name: str
    amount: int  # trials, or points of a density
    run: Run


def fastdiff_trials(n: int, **options: Any) -> Run:
    def run() -> tuple[float, float]:
        start = time.process_time()
        rt, _ = simulate(V, A, n=n, seed=1, **options)
        return time.process_time() - start, float(rt.double().mean())

    return run


def numpy_trials(n: int, dt: float = 0.001) -> Run:
    """Euler, all trials a step at a time, those that have ended taken out."""

    def run() -> tuple[float, float]:
        rng = np.random.default_rng(1)
        start = time.process_time()
        x, index, rt, step = np.full(n, A / 2), np.arange(n), np.zeros(n), 0
        while len(x):
            step += 1
            x = x + V * dt + math.sqrt(dt) * rng.standard_normal(len(x))
            done = (x <= 0) | (x >= A)
            rt[index[done]] = step * dt
            x, index = x[~done], index[~done]
        return time.process_time() - start, float(rt.mean())

    return run


def hddm_style_trials(n: int, dt: float = 0.001, longest: int = 5000) -> Run:
    """Euler as HDDM's gen_rts(method="drift"): one path after another, each drawn whole and searched."""

    def run() -> tuple[float, float]:
        rng = np.random.default_rng(1)
        start = time.process_time()
        rt = np.empty(n)
        for i in range(n):
            path = A / 2 + np.cumsum(rng.normal(V * dt, math.sqrt(dt), longest))
            rt[i] = (np.argmax((path <= 0) | (path >= A)) + 1) * dt
        return time.process_time() - start, float(rt.mean())

    return run


C_SOURCE = """
#include <math.h>
#include <stdint.h>
static uint64_t state[2] = {1, 2};  /* xoroshiro128+ */
static double uniform() {
  const uint64_t s0 = state[0], s1 = state[1] ^ s0, sum = state[0] + state[1];
  state[0] = ((s0 << 24) | (s0 >> 40)) ^ s1 ^ (s1 << 16);
  state[1] = (s1 << 37) | (s1 >> 27);
  return (sum >> 11) * 0x1p-53;
}
static double spare; static int has_spare;
static double normal() {  /* Marsaglia's polar method, as ssm-simulators without GSL */
  if (has_spare) { has_spare = 0; return spare; }
  double u, v, r;
  do { u = 2 * uniform() - 1; v = 2 * uniform() - 1; r = u * u + v * v; } while (r >= 1 || r == 0);
  r = sqrt(-2 * log(r) / r);
  spare = v * r; has_spare = 1;
  return u * r;
}
double euler(int n, double v, double a, double dt) {
  double total = 0;
  for (int i = 0; i < n; ++i) {
    double x = a / 2, t = 0;
    while (x > 0 && x < a) { x += v * dt + sqrt(dt) * normal(); t += dt; }
    total += t;
  }
  return total / n;
}
"""


@contextlib.contextmanager
def c_trials(n: int, dt: float = 0.001) -> Iterator[Run | None]:
    """Euler as one would write it in C: a trial at a time, compiled with -O3."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "euler.c", Path(folder) / "euler.so"
        source.write_text(C_SOURCE)
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", source, "-o", library, "-lm"], check=True)
        euler = ctypes.CDLL(str(library)).euler
        euler.restype, euler.argtypes = ctypes.c_double, [ctypes.c_int, *[ctypes.c_double] * 3]

        def run() -> tuple[float, float]:
            start = time.process_time()
            mean = euler(n, V, A, dt)
            return time.process_time() - start, mean

        yield run


class Peers:
    """The other packages, in their own interpreter."""

    def __init__(self, python: Path) -> None:
        script = Path(__file__).with_name("parts") / "decision_peers.py"
        self._process = subprocess.Popen(
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, task: str) -> str:
        assert self._process.stdin and self._process.stdout
        print(task, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise RuntimeError(f"{task} failed in the peers' interpreter")

    def run(self, task: str) -> Run:
        def run() -> tuple[float, float]:
            seconds, value = self.ask(task).split()
            return float(seconds), float(value)

        return run

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def fastdiff_density() -> tuple[float, float]:
    """Both densities on PyDDM's 401 points -> seconds, density of the upper side at 1 s."""
    times, sides = np.linspace(0, 4, 401), np.array([[0], [1]])
    start = time.process_time()
    values = pdf(times, sides, V, A)
    return time.process_time() - start, float(values[1, 100])


def fastdiff_log_density(n: int, kind: str, samples: int) -> Run:
    """Log-densities of n trials: the public function, that with five derivatives, and these by autograd; the mean time
    of ``samples`` calls."""
    from fastdiff.decision import log_pdf, log_pdf_and_slopes

    rt, choice = times(n), np.ones(n)
    values = {"v": V, "a": A, "z": 0.5, "t0": 0.0, "sv": SV}
    leaves = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in values.items()}

    def by_autograd() -> torch.Tensor:
        found = log_pdf(rt, choice, **leaves)
        torch.autograd.grad(found.sum(), list(leaves.values()))
        return found

    once = {
        "log_pdf": lambda: log_pdf(rt, choice, V, A, 0.5, 0.0, sv=SV),
        "log_pdf_and_slopes": lambda: log_pdf_and_slopes(rt, choice, V, A, 0.5, 0.0, sv=SV)[0],
        "by autograd": by_autograd,
    }[kind]

    def run() -> tuple[float, float]:
        found = once()
        start = time.process_time()
        for _ in range(samples):
            found = once()
        return (time.process_time() - start) / samples, float(found.detach().sum())

    return run


def few_and_many(other: Peers | None, rounds: int, samples: int) -> list[dict[str, Any]]:
    """Log-densities of a subject's trials and of many."""
    rows = []
    for n in NUMBERS:
        sides = [
            Side(f"fastdiff, {kind}", n, fastdiff_log_density(n, kind, samples))
            for kind in ("log_pdf", "log_pdf_and_slopes", "by autograd")
        ]
        if other:
            sides += [
                Side("HDDM", n, other.run(f"hddm {n}")),
                Side("PyDDM, bare, without sv", n, other.run(f"pyddm-bare {n}")),
            ]
        rows += measure(sides, rounds)
    return rows


def log_density_table(rows: list[dict[str, Any]]) -> str:
    """Microseconds for all trials of a call; a row for each side, a column for each number of trials."""
    names = dict.fromkeys(row["name"] for row in rows)
    found = {(row["name"], row["amount"]): f"{row['median'] * 1e6:.3g}" for row in rows}
    return table(
        ("microseconds", *map(str, NUMBERS)), [(name, *(found[name, n] for n in NUMBERS)) for name in names]
    )


def measure(sides: list[Side], rounds: int) -> list[dict[str, Any]]:
    """Each side once a round, in turn; medians with 20% and 80% quantiles."""
    checks: dict[str, float] = {}

    def turn(side: Side) -> list[float]:
        seconds, checks[side.name] = side.run()
        return [seconds]

    turns = {side.name: functools.partial(turn, side) for side in sides}
    take_turns(turns, 1)  # warms up
    rows = []
    for side, timing in zip(sides, timings(turns, rounds).values(), strict=True):
        row = {"name": side.name, "amount": side.amount, **asdict(timing)}
        rows.append(row | {"per_second": side.amount / timing.median, "check": checks[side.name]})
    return rows


def trial_table(rows: list[dict[str, Any]]) -> str:
    speeds = {row["name"]: row["per_second"] for row in rows}
    against = "ssm-simulators" if "ssm-simulators" in speeds else "C, one trial after another"
    slowest = speeds.get(against, math.nan)
    body = [
        (
            r["name"],
            f"{r['per_second']:.3g}",
            f"{r['per_second'] / slowest:.3g}",
            f"{r['check'] - MEAN:+.4f} s",
        )
        for r in rows
    ]
    return table(("", "trials/s", f"times {against}", "mean off by"), body)


def density_table(rows: list[dict[str, Any]]) -> str:
    body = [(row["name"], f"{row['median'] * 1e3:.3f}", f"{row['check']:.10f}") for row in rows]
    return table(("", "ms", "at 1 s"), body)


def main(peers: Path | None = None, rounds: int = 7, small: bool = False) -> None:
    """Measure and print.

    Args:
        peers: Python interpreter with ssm-simulators, pyddm and hddm-wfpt.
        rounds: Number of turns of each side.
        small: Few trials, and no results file: a check that everything runs.
    """
    torch.set_num_threads(1)
    other = Peers(peers) if peers else None
    scale = 100 if small else 1
    with c_trials(10_000 // scale) as c_run:
        settings: dict[str, tuple[int, Callable[[int], Run]]] = {
            "exact": (4_000_000, fastdiff_trials),
            "bridge, dt 0.01": (400_000, functools.partial(fastdiff_trials, method="bridge", dt=0.01)),
            "Euler, dt 0.001": (300_000, functools.partial(fastdiff_trials, method="euler")),
            "Euler, dt 0.001, every step drawn": (
                100_000,
                functools.partial(fastdiff_trials, method="euler", every_step=True),
            ),
            "NumPy, all trials at once": (10_000, numpy_trials),
            "NumPy, one path after another (as HDDM)": (2_000, hddm_style_trials),
        }
        sides = [Side(name, n // scale, make(n // scale)) for name, (n, make) in settings.items()]
        if c_run:
            sides.append(Side("C, one trial after another", 10_000 // scale, c_run))
        if other:
            sides.append(Side("ssm-simulators", TRIALS, other.run("ssms")))
        trials = measure(sides, rounds)
    sides = [Side("fastdiff", 802, fastdiff_density)]
    if other:
        sides.append(Side("PyDDM, analytic", 802, other.run("pyddm")))
    density = measure(sides, 3 if small else 300)
    log_density = few_and_many(other, *((1, 1) if small else (31, SAMPLES)))
    about = machine.describe() | {"peers": other.ask("versions") if other else "none"}
    if other:
        other.close()
    print(
        machine.in_words(about),
        trial_table(trials),
        density_table(density),
        log_density_table(log_density),
        sep="\n\n",
    )
    if not small:
        results.write(
            RESULTS / results.file_name("decision"),
            about,
            mean=MEAN,
            trials=trials,
            density=density,
            log_density=log_density,
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
