"""The other packages' side of benchmarks/decision.py, run by the interpreter in which they are installed.

Reads a task per line, answers with seconds of processor time and a check value: ``ssms``, ``pyddm``, ``hddm N``,
``pyddm-bare N``, ``versions``.
"""

from __future__ import annotations

import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

V, A, DT = 1.0, 2.0, 0.001
TRIALS = 10_000


def ssms() -> tuple[float, float]:
    """ssm-simulators' Euler, whose "a" is half the separation -> seconds, mean time."""
    from ssms.basic_simulators.simulator import simulator  # pyright: ignore[reportMissingImports]

    theta = np.array([V, A / 2, 0.5, 0.0])
    start = time.process_time()
    out = simulator(theta=theta, model="ddm", n_samples=TRIALS, delta_t=DT, max_t=20, random_state=1)
    return time.process_time() - start, float(np.mean(out["rts"]))


_model: list[Any] = []


def pyddm() -> tuple[float, float]:
    """PyDDM's analytic solver, both densities on 401 points -> seconds, density of the upper side at 1 s."""
    import pyddm  # pyright: ignore[reportMissingImports]

    if not _model:
        _model.append(
            pyddm.gddm(drift=V, noise=1.0, bound=A / 2, nondecision=0.0, T_dur=4.0, dt=0.01, mixture_coef=0)
        )
    start = time.process_time()
    solution = _model[0].solve_analytical()
    return time.process_time() - start, float(solution.pdf("correct")[100])


SV, SAMPLES = 0.4, 50


def times(n: int) -> np.ndarray:
    """n response times over the range that matters, the same for every side."""
    return 0.05 + 3.95 * (np.arange(n) * 0.6180339887498949 % 1)


def hddm(n: int) -> tuple[float, float]:
    """HDDM's density with sv, one side at n times, to 1e-10 -> seconds a call, sum of the log densities."""
    import wfpt  # pyright: ignore[reportMissingImports]

    x = times(n)
    found = wfpt.pdf_array(x, V, SV, A, 0.5, 0.0, 0.0, 0.0, 1e-10, logp=True)
    start = time.process_time()
    for _ in range(SAMPLES):
        found = wfpt.pdf_array(x, V, SV, A, 0.5, 0.0, 0.0, 0.0, 1e-10, logp=True)
    return (time.process_time() - start) / SAMPLES, float(np.sum(found))


def pyddm_bare(n: int) -> tuple[float, float]:
    """The function inside PyDDM's solver, without sv -> seconds a call, sum of densities.

    It always gives both sides, here at n / 2 times, and takes no fewer than two times.
    """
    from pyddm.analytic import analytic_ddm  # pyright: ignore[reportMissingImports]

    x = np.sort(times(max(2, n // 2)))
    found = analytic_ddm(V, 1.0, A / 2, x)
    start = time.process_time()
    for _ in range(SAMPLES):
        found = analytic_ddm(V, 1.0, A / 2, x)
    return (time.process_time() - start) / SAMPLES, float(sum(np.sum(side) for side in found))


def versions() -> str:
    said = []
    for package in ("ssm-simulators", "pyddm", "hddm-wfpt", "numpy"):
        try:
            said.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            said.append(f"{package} not installed")
    return ", ".join(said)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        task = line.strip()
        name, *numbers = task.split()
        tasks = {"ssms": ssms, "pyddm": pyddm, "hddm": hddm, "pyddm-bare": pyddm_bare}
        answer = versions() if task == "versions" else " ".join(map(repr, tasks[name](*map(int, numbers))))
        print(f"answer {answer}", flush=True)
