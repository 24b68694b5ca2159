"""``fastdiff decision``: simulate, fit and plot the diffusion decision model, with trials in CSV files."""

from __future__ import annotations

import csv
import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastdiff.cli.decision_data import Estimation, cores
from fastdiff.cli.options import Count, Out, Progress
from fastdiff.cli.shared import check_folder
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

_WORTH_PROCESSES = 4000  # trials; fewer are fitted sooner than other processes start
PICTURES = ("decision_paths.png", "quantile_probability.png")


@dataclass(frozen=True)
class Simulate:
    """Simulate trials of the decision model and write them to the CSV file OUT.

    Its columns are condition, rt (response time in seconds) and choice: 1 at the upper boundary, 0 at the lower one
    and -1 if there was no response by T_MAX or DEADLINE.
    """

    v: tuple[float, ...] = (1.0,)
    """Drift rates, one for each condition."""
    a: float = 2.0
    """Boundary separation: the boundaries lie at 0 and A."""
    z: float = 0.5
    """Starting point, as a fraction of A or as a length; see Z_MODE."""
    t0: float = 0.3
    """Non-decision time in seconds; see T0_MODE."""
    s: float = 1.0
    """Noise: standard deviation of the walk per square root of a second; 0.1 in Ratcliff's papers."""
    sv: float = 0.0
    """Standard deviation of the drift rate between trials."""
    sz: float = 0.0
    """Full width of the starting point's uniform range."""
    st0: float = 0.0
    """Full width of the non-decision time's uniform range."""
    z_mode: Literal["relative", "absolute"] = "relative"
    """Unit of Z and SZ: fractions of A (relative) or lengths (absolute)."""
    t0_mode: Literal["lower", "mid"] = "lower"
    """Position of T0 in the range of non-decision times: its lower edge or its middle."""
    n: Count = 1000
    """Number of trials of each condition."""
    seed: int | None = None
    """Random seed. Default: a new one, which is printed."""
    method: Literal["exact", "bridge", "euler"] | None = None
    """Exact simulation without time steps; or Euler steps, with (bridge) or without (euler) crossings between steps.
    Default: exact, or bridge if the boundaries close or the walk leaks."""
    closing: Literal["linear", "exponential", "weibull"] | None = None
    """How the boundaries close towards their middle. Default: they are fixed."""
    closing_scale: float = 1.0
    """Time in seconds in which linear boundaries meet, or time constant of the others."""
    closing_shape: float = 1.0
    """Shape of Weibull boundaries, at least 1."""
    closing_share: float = 1.0
    """Share of the separation that exponential and Weibull boundaries lose in the end."""
    leak: float = 0.0
    """Leak per second: the drift falls by LEAK times the distance from the middle; negative for self-excitation."""
    dt: float = 0.001
    """Time step of bridge and euler, in seconds."""
    t_max: float = math.inf
    """Time in seconds at which the walk of a trial ends without a decision."""
    deadline: float | None = None
    """Latest response time in seconds, non-decision time included; later ones become choice -1. Default: none."""
    out: Path = Path("out/trials.csv")
    """CSV file to write; its folder is created if it does not exist."""
    progress: Progress = True

    def run(self) -> int:
        import torch

        from fastdiff import decision
        from fastdiff.bench.machine import device_name
        from fastdiff.decision.table import write_trials

        if not self.v:
            raise FastdiffError("v must have at least one drift rate")
        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        model = {k: getattr(self, k) for k in ("a", "z", "t0", "s", "sv", "sz", "st0", "z_mode", "t0_mode")}
        drifts = torch.tensor(self.v, dtype=torch.float64)
        closing = None
        if self.closing is not None:
            closing = decision.Closing(
                self.closing, self.closing_scale, self.closing_shape, self.closing_share
            )
        moving = closing is not None or self.leak != 0
        method = self.method or ("bridge" if moving else "exact")
        start = time.perf_counter()
        trials = decision.simulate(
            drifts.repeat_interleave(self.n), **model, seed=self.seed, method=method, dt=self.dt,
            closing=closing, leak=self.leak,
            t_max=self.t_max, deadline=self.deadline, progress=self.progress,
        )  # fmt: skip
        rt, choice = trials
        seconds = time.perf_counter() - start
        check_folder(self.out.parent)
        write_trials(
            self.out, rt.tolist(), choice.tolist(), [f"{v:g}" for v in self.v for _ in range(self.n)]
        )
        # Of boundaries that close and walks that leak there is no closed form.
        closed = None if moving else decision.moments(drifts, **model)
        print(
            "condition   upper  closed form   mean rt  closed form"
            + " (no deadline)" * (self.t_max < math.inf or self.deadline is not None)
        )
        for i, v in enumerate(self.v):
            part = slice(i * self.n, (i + 1) * self.n)
            decided = choice[part] >= 0
            mean = float(rt[part][decided].double().mean()) if bool(decided.any()) else math.nan
            share = float((choice[part] == 1).double().mean())
            known = ("-", "-") if closed is None else (f"{closed.p_upper[i]:.4f}", f"{closed.mean[i]:.4f}")
            print(f"v = {v:<6g} {share:7.4f} {known[0]:>12} {mean:9.4f} {known[1]:>12}")
        print(f"device     {device_name()}")
        print(f"simulated  {len(rt)} trials in {seconds:.3f} s: {len(rt) / seconds:.3g} trials/s ({method})")
        print(f"seed       {trials.seed}")
        print(f"wrote      {self.out}")
        return 0


@dataclass(frozen=True)
class FitTrials(Estimation):
    """Fit the decision model to the trials in a CSV file, print the estimates and write them to OUT (JSON).

    With --subject each subject is fitted separately, and a table (.csv) and a picture (.png) are written beside OUT.
    If --hierarchical is given too, all subjects are fitted together as draws from a group.
    """

    hierarchical: bool = False
    """Hierarchical fit: the distribution of the group, and each subject given the group."""
    workers: int = 0
    """Number of processes that share the subjects. 0: one for each processor, if there are many trials."""
    out: Path = Path("out/fit.json")
    """JSON file to write; its folder is created if it does not exist."""

    def run(self) -> int:
        if self.hierarchical and self.subject is None:
            raise FastdiffError("--hierarchical needs --subject, the column that tells the subjects apart")
        table = self.table()
        used, start = self.used(table), time.perf_counter()
        found = _solve(self, used, self.hierarchical, self.workers)
        seconds = time.perf_counter() - start
        check_folder(self.out.parent)
        with atomic_path(self.out) as path:
            path.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
        missing = f", {used.undecided} of them missing at the deadline" if used.undecided else ""
        print(f"trials          {len(used.rt)}{missing}")
        for text in self.left_out(table):
            print(f"                {text}")
        print(found.summary())
        print(f"fitted in       {seconds:.1f} s")
        wrote = [self.out, *_write_subjects(found, self.out)]
        print(f"wrote           {', '.join(map(str, wrote))}")
        return 0


@dataclass(frozen=True)
class Plot(Estimation):
    """Plot the trials in a CSV file and the model fitted to them, as two pictures in the folder OUT.

    The picture decision_paths.png shows simulated walks, and the response times above and below the boundaries; the
    picture quantile_probability.png shows quantiles of the response time over the probability of the response.
    """

    show: str | None = None
    """Condition whose walks are drawn. Default: the one whose choices are closest to one half each."""
    walks: int = 14
    """Number of simulated walks to draw."""
    seed: int = 0
    """Random seed of the walks."""
    out: Out = Path("out")

    def run(self) -> int:
        import numpy as np

        from fastdiff.decision import plots

        if self.walks < 1:
            raise FastdiffError(f"walks must be at least 1, got {self.walks}")
        plots.pyplot("decision")  # raises an error now, before the work, if matplotlib is missing
        table = self.used(self.table())
        labels, decided = np.array(table.condition or ["all"] * len(table.rt)), table.choice >= 0
        known = list(dict.fromkeys(labels.tolist()))
        shown = self.show or min(
            known, key=lambda c: abs((table.choice[(labels == c) & decided] == 1).mean() - 0.5)
        )
        if shown not in known:
            raise FastdiffError(f"{self.data} has no condition {shown!r}; it has: {', '.join(known)}")
        found = _solve(self, table, False, 1, together=True)
        here = (labels == shown) & decided
        pictures = (
            plots.paths_picture(
                table.rt[here], table.choice[here], found.of(shown), walks=self.walks, seed=self.seed
            ),
            plots.quantile_probability_picture(found, table.rt, table.choice, table.condition),
        )
        check_folder(self.out)
        for name, picture in zip(PICTURES, pictures, strict=True):
            with atomic_path(self.out / name) as path:
                picture.savefig(path, format="png")
        print(f"wrote      {', '.join(str(self.out / name) for name in PICTURES)}")
        return 0


def _solve(data: Estimation, table: Any, hierarchical: bool, workers: int, together: bool = False) -> Any:
    """A Fit, or for a file with subjects SubjectFits or a HierarchicalFit, unless ``together`` is set."""
    from tqdm import tqdm

    from fastdiff import decision

    options, subject = data.options(table), None if together else table.subject
    if subject is not None and hierarchical:
        extra = {n: options.pop(n) for n in ("method", "starts")}
        if extra != {"method": "ml", "starts": 1}:
            raise FastdiffError(
                "a hierarchical fit is by maximum likelihood from one start; leave out --method and --starts"
            )
    unit = "iteration" if subject is None or hierarchical else "subject"
    with tqdm(desc="fitting", unit=unit, disable=not data.progress, leave=False) as bar:

        def show(number: int, value: float) -> None:
            if unit == "subject":
                bar.total = int(value)
            else:
                bar.set_postfix_str(f"log-likelihood {value:.2f}")
            bar.update(number - bar.n)

        given = (table.rt, table.choice)
        if subject is None:
            with warnings.catch_warnings():  # the summary prints them
                warnings.simplefilter("ignore", UserWarning)
                return decision.fit(*given, table.condition, progress=show, **options)
        if hierarchical:
            return decision.fit_hierarchical(*given, subject, table.condition, progress=show, **options)
        count = workers or (cores() if len(table.rt) > _WORTH_PROCESSES else 1)
        return decision.fit_subjects(
            *given, subject, table.condition, workers=count, progress=show, **options
        )


def _write_subjects(found: Any, out: Path) -> list[Path]:
    """Write the table and the picture of the fits of many subjects; return the files' paths."""
    from fastdiff.decision import SubjectFits, plots

    if not isinstance(found, SubjectFits):
        return []
    wrote = [out.with_suffix(".csv")]
    rows = found.table()
    with atomic_path(wrote[0]) as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    try:
        picture = plots.subjects_picture(found)
    except FastdiffError as error:
        print(f"no picture      {error}")
        return wrote
    wrote.append(out.with_suffix(".png"))
    with atomic_path(wrote[1]) as path:
        picture.savefig(path, format="png")
    return wrote
