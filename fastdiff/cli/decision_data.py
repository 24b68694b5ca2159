"""What ``fastdiff decision fit``, ``posterior`` and ``plot`` share: a CSV file's columns, and the model to fit."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from fastdiff.cli.options import Progress
from fastdiff.errors import FastdiffError

if TYPE_CHECKING:
    from fastdiff.decision.table import Table

Parameter = Literal["v", "a", "z", "t0", "sv", "sz", "st0", "p_outlier"]


@dataclass(frozen=True)
class Data:
    """A CSV file of trials and the model to fit to it."""

    data: Positional[Path]
    """CSV file with one row for each trial."""
    rt: str = "rt"
    """Column of the response times."""
    response: str = "choice"
    """Column of the responses: 1 or upper, 0 or lower, and -1 for none, unless CODING says otherwise."""
    condition: str = "condition"
    """Column of the conditions."""
    subject: str | None = None
    """Column of the subjects, each of whom is fitted separately. Default: all trials are fitted together."""
    unit: Literal["s", "ms"] = "s"
    """Unit of the response times."""
    coding: tuple[str, ...] = ()
    """Coding of the response column, such as upper=correct lower=error missing=NA, or upper=1 lower=-1."""
    skip_bad: bool = False
    """Skip rows that cannot be used and report how many, instead of stopping at the first with an error."""
    rt_range: tuple[float, float] = (0.0, math.inf)
    """Range of response times in seconds; responses outside it are left out, and their number is reported."""
    deadline: float | None = None
    """Response deadline in seconds: missing responses then enter the likelihood. Default: they are left out."""
    free: tuple[Parameter, ...] = ()
    """Parameters to fit. Default: those of v, a, z and t0 that FIX does not name."""
    by: tuple[Parameter, ...] = ("v",)
    """Parameters that have a value for each condition."""
    fix: tuple[str, ...] = ()
    """Fixed values of parameters that are not fitted, such as z=0.5 a=1.2."""
    bounds: tuple[str, ...] = ()
    """Bounds of fitted parameters, such as t0=0.1:0.4."""
    formula: tuple[str, ...] = ()
    """Regression formulas, such as "v ~ 0 + condition + log(frequency)"; they need the package formulaic."""
    link: tuple[str, ...] = ()
    """Link functions of fitted parameters, such as a=identity: identity, log or logit."""
    p_outlier: float = 0.05
    """Proportion of outliers: responses that do not come from the model. It is fitted if FREE lists p_outlier."""
    outliers: Literal["uniform", "exponential"] = "uniform"
    """Distribution of the outliers' response times."""
    s: float = 1.0
    """Noise, which sets the unit of length; 0.1 in Ratcliff's papers."""
    progress: Progress = True

    def table(self) -> Table:
        """Read the trials."""
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
        """Keyword arguments for :func:`fastdiff.decision.fit`."""
        fixed = {name: number("fix", text) for name, text in pairs("fix", self.fix).items()}
        free: dict[str, Any] = {"free": self.free} if self.free else {}
        named = {text.split("~")[0].strip() for text in self.formula}
        if "p_outlier" not in (*self.free, *named, *fixed):
            fixed["p_outlier"] = self.p_outlier
        by = tuple(name for name in self.by if name not in fixed and name not in named)
        # The default by = v fits no parameter that FREE does not list.
        by = tuple(name for name in by if not self.free or name in self.free)
        columns: dict[str, Any] = {**table.more}
        if table.condition is not None and self.condition not in columns:
            columns[self.condition] = table.condition
        return {
            **free, **fixed, "by": by, "formulas": self.formula, "links": pairs("link", self.link),
            "bounds": {name: interval(text) for name, text in pairs("bounds", self.bounds).items()},
            "outliers": self.outliers, "s": self.s, "deadline": self.deadline, "columns": columns,
        }  # fmt: skip

    def left_out(self, table: Table) -> list[str]:
        """One sentence for each reason why trials are not in the likelihood."""
        said = [f"{count} rows left out: {reason}" for reason, count in table.skipped.items()]
        if table.undecided and self.deadline is None:
            said.append(
                f"{table.undecided} without a decision left out; --deadline puts them into the likelihood"
            )
        return said

    def _columns_of_formulas(self) -> tuple[str, ...]:
        """The file's columns that the formulas name."""
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


@dataclass(frozen=True)
class Estimation(Data):
    """Data, model and options of the optimiser."""

    method: Literal["ml", "chisquare", "gsquare"] = "ml"
    """Estimation method: maximum likelihood, or the chi-square or G-square statistic of quantiles."""
    starts: int = 1
    """Number of starting points of the optimiser; the best result is kept."""

    def options(self, table: Table) -> dict[str, Any]:
        return {**super().options(table), "method": self.method, "starts": self.starts}


def pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    """Parse texts of the form NAME=VALUE into a dict.

    Raises:
        FastdiffError: a text without an equals sign.
    """
    for text in texts:
        if "=" not in text:
            raise FastdiffError(f"--{option} takes NAME=VALUE, got {text!r}")
    return {name.strip(): value.strip() for name, value in (text.split("=", 1) for text in texts)}


def number(option: str, text: str) -> float:
    """Parse a number.

    Raises:
        FastdiffError: the text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        raise FastdiffError(f"--{option}: {text!r} is not a number") from None


def interval(text: str) -> tuple[float, float]:
    """Parse LOW:HIGH.

    Raises:
        FastdiffError: the text is not two numbers.
    """
    low, colon, high = text.partition(":")
    if not colon:
        raise FastdiffError(f"--bounds takes NAME=LOW:HIGH, got {text!r}")
    return number("bounds", low), number("bounds", high)


def cores() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
