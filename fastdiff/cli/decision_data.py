"""What ``fastdiff decision fit`` and ``plot`` share: where a CSV file has what, and what is fitted to it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from fastdiff.decision.table import Table

Parameter = Literal["v", "a", "z", "t0", "sv", "sz", "st0", "p_outlier"]


@dataclass(frozen=True)
class Data:
    """A CSV file of trials and the model to fit to it."""

    data: Positional[Path]
    """CSV file with a row for each trial."""
    rt: str = "rt"
    """Column of the response times."""
    response: str = "choice"
    """Column of the responses: 1 or upper, 0 or lower, -1 for none, unless CODING tells otherwise."""
    condition: str = "condition"
    """Column that tells the conditions apart."""
    subject: str | None = None
    """Column that tells the subjects apart; each is then fitted by itself."""
    unit: Literal["s", "ms"] = "s"
    """Of the response times."""
    coding: tuple[str, ...] = ()
    """Words of the response column, such as upper=correct lower=error missing=NA, or upper=1 lower=-1."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, and say how many; otherwise the first one is an error."""
    rt_range: tuple[float, float] = (0.0, math.inf)
    """Seconds; responses outside are left out, and counted."""
    deadline: float | None = None
    """Seconds until which a response counts. Missing ones are then part of the likelihood, else they are left out."""
    free: tuple[Parameter, ...] = ()
    """Parameters to fit; left out: those of v a z t0 that FIX does not name."""
    by: tuple[Parameter, ...] = ("v",)
    """Parameters with one value for each condition."""
    fix: tuple[str, ...] = ()
    """Values of parameters that are not fitted, such as z=0.5 a=1.2."""
    bounds: tuple[str, ...] = ()
    """Limits of fitted parameters, such as t0=0.1:0.4."""
    formula: tuple[str, ...] = ()
    """Regressions, such as "v ~ 0 + condition + log(frequency)"; needs formulaic."""
    link: tuple[str, ...] = ()
    """Links of fitted parameters, such as a=identity; of identity, log and logit."""
    p_outlier: float = 0.05
    """Share of responses that do not come from the model, unless FREE lists p_outlier."""
    outliers: Literal["uniform", "exponential"] = "uniform"
    """How these are distributed."""
    s: float = 1.0
    """Noise, which sets the unit of length: 1, or 0.1 in Ratcliff's papers."""
    method: Literal["ml", "chisquare", "gsquare"] = "ml"
    """Maximum likelihood, or a distance between quantiles."""
    starts: int = 1
    """Points to start from; the best end is kept."""
    progress: bool = True
    """Show a progress bar."""

    def table(self) -> Table:
        """The trials; without a deadline only those with a response."""
        from fastdiff.decision.table import Columns, read_trials

        columns = Columns(
            rt=self.rt, response=self.response, condition=self.condition, subject=self.subject, unit=self.unit,
            coding=pairs("coding", self.coding), more=self._columns_of_formulas(), skip_bad=self.skip_bad,
            rt_range=self.rt_range,
        )  # fmt: skip
        return read_trials(self.data, columns)

    def used(self, table: Table) -> Table:
        """The trials that go into the likelihood."""
        return table if self.deadline is not None else table.decided()

    def options(self, table: Table) -> dict[str, Any]:
        """The keywords of ``fit``."""
        fixed = {name: number("fix", text) for name, text in pairs("fix", self.fix).items()}
        free: dict[str, Any] = {"free": self.free} if self.free else {}
        named = {text.split("~")[0].strip() for text in self.formula}
        if "p_outlier" not in (*self.free, *named, *fixed):
            fixed["p_outlier"] = self.p_outlier
        by = tuple(name for name in self.by if name not in fixed and name not in named)
        # The default by = v frees nothing that FREE leaves out.
        by = tuple(name for name in by if not self.free or name in self.free)
        columns: dict[str, Any] = {**table.more}
        if table.condition is not None and self.condition not in columns:
            columns[self.condition] = table.condition
        return {
            **free, **fixed, "by": by, "formulas": self.formula, "links": pairs("link", self.link),
            "bounds": {name: interval(text) for name, text in pairs("bounds", self.bounds).items()},
            "outliers": self.outliers, "s": self.s, "method": self.method, "starts": self.starts,
            "deadline": self.deadline, "columns": columns,
        }  # fmt: skip

    def left_out(self, table: Table) -> list[str]:
        """A sentence for each reason why trials are not in the likelihood."""
        said = [f"{count} rows left out: {reason}" for reason, count in table.skipped.items()]
        if table.undecided and self.deadline is None:
            said.append(
                f"{table.undecided} without a decision left out; --deadline puts them into the likelihood"
            )
        return said

    def _columns_of_formulas(self) -> tuple[str, ...]:
        """Names in the formulas that the file may have as columns."""
        import csv
        import re

        if not self.formula:
            return ()
        try:
            with open(self.data, newline="", encoding="utf-8-sig") as file:
                known = next(csv.reader(file), [])
        except (OSError, UnicodeDecodeError):
            return ()  # read_trials says what is wrong
        words = set(re.findall(r"\w+", " ".join(text.split("~", 1)[-1] for text in self.formula)))
        return tuple(name for name in known if name in words and name != self.condition)


def pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE texts as a dict.

    Raises:
        FastdiffError: a text without an equals sign.
    """
    for text in texts:
        if "=" not in text:
            raise FastdiffError(f"--{option} is made of NAME=VALUE, got {text!r}")
    return {name.strip(): value.strip() for name, value in (text.split("=", 1) for text in texts)}


def number(option: str, text: str) -> float:
    """A number.

    Raises:
        FastdiffError: no number.
    """
    try:
        return float(text)
    except ValueError:
        raise FastdiffError(f"--{option}: {text!r} is not a number") from None


def interval(text: str) -> tuple[float, float]:
    """LOW:HIGH.

    Raises:
        FastdiffError: not two numbers.
    """
    low, colon, high = text.partition(":")
    if not colon:
        raise FastdiffError(f"--bounds is made of NAME=LOW:HIGH, got {text!r}")
    return number("bounds", low), number("bounds", high)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
