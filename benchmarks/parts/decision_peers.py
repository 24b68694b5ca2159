"""The other packages' side of benchmarks/decision.py, run by the interpreter in which they are installed.

Reads a task per line, answers with seconds of processor time and a check value: ``ssms``, ``pyddm``, ``versions``.
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


def versions() -> str:
    said = []
    for package in ("ssm-simulators", "pyddm", "numpy"):
        try:
            said.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            said.append(f"{package} not installed")
    return ", ".join(said)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        task = line.strip()
        answer = (
            versions() if task == "versions" else " ".join(map(repr, {"ssms": ssms, "pyddm": pyddm}[task]()))
        )
        print(f"answer {answer}", flush=True)
