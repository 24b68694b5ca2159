"""``fastdiff decision``: simulate, fit and plot the diffusion decision model, trials in CSV files."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import numpy as np
import torch
from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from fastdiff.cli.info import device_name
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

PICTURES = ("decision_paths.png", "quantile_probability.png")


@dataclass(frozen=True)
class Simulate:
    """Simulate trials of the decision model: writes OUT, a CSV file with the columns condition, rt and choice.

    choice is 1 at the upper boundary, 0 at the lower one and -1 without a decision by T_MAX.
    """

    v: tuple[float, ...] = (1.0,)
    """Drift rates: each is a condition of its own."""
    a: float = 2.0
    """Separation of the boundaries, which lie at 0 and A."""
    z: float = 0.5
    """Start, as a fraction of A or as a length; see Z_MODE."""
    t0: float = 0.3
    """Non-decision time in seconds; see T0_MODE."""
    s: float = 1.0
    """Noise: 1, or 0.1 in Ratcliff's papers."""
    sv: float = 0.0
    """Standard deviation of the drift between trials."""
    sz: float = 0.0
    """Full width of the start's uniform range."""
    st0: float = 0.0
    """Full width of the non-decision time's uniform range."""
    z_mode: Literal["relative", "absolute"] = "relative"
    """Whether Z and SZ are fractions of A or lengths."""
    t0_mode: Literal["lower", "mid"] = "lower"
    """Whether T0 is the lower edge or the middle of its range."""
    n: int = 1000
    """Trials of each condition."""
    seed: int = 0
    """Of the run."""
    method: Literal["exact", "bridge", "euler"] = "exact"
    """Without time steps, or with them: corrected for crossings between steps, or not."""
    dt: float = 0.001
    """Seconds a step, for bridge and euler."""
    t_max: float = math.inf
    """Seconds after which a trial ends without a decision."""
    out: Path = Path("out/trials.csv")
    """CSV file to write; its folder is made if it does not exist."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> int:
        from fastdiff import decision
        from fastdiff.decision.table import write_trials

        if not self.v:
            raise FastdiffError("v must have at least one drift rate")
        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        model = {k: getattr(self, k) for k in ("a", "z", "t0", "s", "sv", "sz", "st0", "z_mode", "t0_mode")}
        drifts = torch.tensor(self.v, dtype=torch.float64)
        start = time.perf_counter()
        rt, choice = decision.simulate(
            drifts.repeat_interleave(self.n), **model, seed=self.seed, method=self.method, dt=self.dt,
            t_max=self.t_max, progress=self.progress,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        _make_folder(self.out.parent)
        write_trials(
            self.out, rt.tolist(), choice.tolist(), [f"{v:g}" for v in self.v for _ in range(self.n)]
        )
        closed = decision.moments(drifts, **model)
        print(
            "condition   upper  closed form   mean rt  closed form"
            + " (no deadline)" * (self.t_max < math.inf)
        )
        for i, v in enumerate(self.v):
            part = slice(i * self.n, (i + 1) * self.n)
            decided = choice[part] >= 0
            mean = float(rt[part][decided].double().mean()) if bool(decided.any()) else math.nan
            share = float((choice[part] == 1).double().mean())
            print(
                f"v = {v:<6g} {share:7.4f} {float(closed.p_upper[i]):12.4f} {mean:9.4f} {float(closed.mean[i]):12.4f}"
            )
        print(f"device     {device_name()}")
        print(
            f"simulated  {len(rt)} trials in {seconds:.3f} s: {len(rt) / seconds:.3g} trials/s ({self.method})"
        )
        print(f"wrote      {self.out}")
        return 0


@dataclass(frozen=True)
class FitTrials:
    """Fit the decision model to a CSV file by maximum likelihood: prints the estimates and writes OUT (JSON).

    Each condition has a drift of its own; everything else is shared.
    """

    data: Positional[Path]
    """CSV file with the columns rt (seconds), choice (1 or upper, 0 or lower) and, if any, CONDITION."""
    condition: str = "condition"
    """Column that tells the conditions apart."""
    free: tuple[Literal["v", "a", "z", "t0", "sv", "sz", "st0"], ...] = ("v", "a", "z", "t0")
    """Parameters to fit: v a t0, and any of z sv sz st0."""
    s: float = 1.0
    """Noise, which sets the unit of length: 1, or 0.1 in Ratcliff's papers."""
    out: Path = Path("out/fit.json")
    """JSON file to write; its folder is made if it does not exist."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> int:
        from fastdiff.decision.table import read_trials

        table = read_trials(self.data, self.condition)
        found = _fitted(table, self.free, self.s, self.progress)
        _make_folder(self.out.parent)
        with atomic_path(self.out) as path:
            path.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
        left_out = f" ({table.undecided} without a decision left out)" if table.undecided else ""
        print(f"trials          {found.trials}{left_out}")
        print("parameter       estimate  standard error")
        for name, label, estimate, error in _rows(found):
            print(f"{name:<4} {label:<10} {estimate:8.4f}  {error:14.4f}" if error is not None
                  else f"{name:<4} {label:<10} {estimate:8.4f}           fixed")  # fmt: skip
        print(f"log-likelihood  {found.log_likelihood:.2f}   AIC {found.aic:.2f}   BIC {found.bic:.2f}")
        print(f"optimiser       {'converged' if found.converged else 'stopped: ' + found.message}")
        print(f"wrote           {self.out}")
        return 0


@dataclass(frozen=True)
class Plot:
    """Draw a CSV file's trials with the model fitted to them: writes two pictures into OUT.

    decision_paths.png: simulated walks, and the response times above and below the boundaries.
    quantile_probability.png: quantiles of the response time over the probability of the response.
    """

    data: Positional[Path]
    """CSV file with the columns rt (seconds), choice (1 or upper, 0 or lower) and, if any, CONDITION."""
    condition: str = "condition"
    """Column that tells the conditions apart."""
    show: str | None = None
    """Condition whose walks are drawn; left out, the one whose choices are the most even."""
    free: tuple[Literal["v", "a", "z", "t0", "sv", "sz", "st0"], ...] = ("v", "a", "z", "t0")
    """Parameters to fit: v a t0, and any of z sv sz st0."""
    s: float = 1.0
    """Noise, which sets the unit of length: 1, or 0.1 in Ratcliff's papers."""
    walks: int = 14
    """Simulated walks to draw."""
    seed: int = 0
    """Of the walks."""
    out: Path = Path("out")
    """Folder for the pictures; made if it does not exist."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> int:
        from fastdiff.decision import plots
        from fastdiff.decision.table import read_trials

        if self.walks < 1:
            raise FastdiffError(f"walks must be at least 1, got {self.walks}")
        plots.pyplot()  # tells before the work, not after, if matplotlib is missing
        table = read_trials(self.data, self.condition)
        labels = np.array(table.condition or ["all"] * len(table.rt))
        shown = self.show or min(
            dict.fromkeys(labels.tolist()), key=lambda c: abs(table.choice[labels == c].mean() - 0.5)
        )
        if shown not in labels:
            known = ", ".join(dict.fromkeys(labels.tolist()))
            raise FastdiffError(f"{self.data} has no condition {shown!r}; it has: {known}")
        found = _fitted(table, self.free, self.s, self.progress)
        here = labels == shown
        pictures = (
            plots.paths_picture(
                table.rt[here], table.choice[here], found.of(shown), walks=self.walks, seed=self.seed
            ),
            plots.quantile_probability_picture(found, table.rt, table.choice, table.condition),
        )
        _make_folder(self.out)
        for name, picture in zip(PICTURES, pictures, strict=True):
            with atomic_path(self.out / name) as path:
                picture.savefig(path, format="png")
        print(f"wrote      {', '.join(str(self.out / name) for name in PICTURES)}")
        return 0


@dataclass(frozen=True)
class Decision:
    """The diffusion decision model of psychology: simulate trials, fit and plot them; data in CSV files."""

    action: OmitSubcommandPrefixes[
        Union[  # noqa: UP007 (tyro reads the annotations at run time)
            Annotated[Simulate, subcommand("simulate")],
            Annotated[FitTrials, subcommand("fit")],
            Annotated[Plot, subcommand("plot")],
        ]
    ]

    def run(self) -> int:
        return self.action.run()


def _fitted(table: Any, free: tuple[str, ...], s: float, progress: bool) -> Any:
    from tqdm import tqdm

    from fastdiff.decision import fit

    with tqdm(desc="fitting", unit="iteration", disable=not progress, leave=False) as bar:

        def show(iteration: int, log_likelihood: float) -> None:
            bar.update(iteration - bar.n)
            bar.set_postfix_str(f"log-likelihood {log_likelihood:.2f}")

        return fit(table.rt, table.choice, table.condition, free=free, s=s, progress=show)


def _rows(found: Any) -> list[tuple[str, str, float, float | None]]:
    """Name, condition, estimate, standard error (None: fixed)."""
    rows = []
    for name in ("v", "a", "z", "t0", "s", "sv", "sz", "st0"):
        estimates, errors = found.estimates[name], found.standard_errors.get(name)
        if isinstance(estimates, list):
            rows += [(name, c, e, x) for c, e, x in zip(found.conditions, estimates, errors, strict=True)]
        else:
            rows.append((name, "", estimates, errors))
    return rows


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise FastdiffError(f"cannot write to {folder}: {reason}; give --out a place to write to") from None
