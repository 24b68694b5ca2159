"""The design of a fit: free parameters, and their coordinates, which are shared, by condition, or by a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.decision.likelihood import Outliers
from fastdiff.errors import FastdiffError

NAMES = ("v", "a", "z", "t0", "sv", "sz", "st0", "p_outlier")
LIMITS = {"v": (-math.inf, math.inf), "a": (0.0, math.inf), "z": (0.0, 1.0), "t0": (0.0, math.inf),
          "sv": (0.0, math.inf), "sz": (0.0, 1.0), "st0": (0.0, math.inf), "p_outlier": (0.0, 0.5)}  # fmt: skip
Link = Literal["identity", "log", "logit"]


@dataclass(frozen=True)
class Design:
    """The parameters that are free, and how they vary.

    free: names of the fitted parameters; all others stay at ``fixed``. A name in ``fixed`` that ``free`` does not list
    is fixed. by: free names with one value for each condition. formulas: Wilkinson formulas such as
    "v ~ 0 + condition + log(frequency)", read by formulaic, whose coefficients act on the link's scale. bounds: name ->
    (low, high). links: name -> "identity", "log" or "logit" (between the bounds); by default the bounds decide. start:
    name -> starting value. s: the noise, which sets the unit of length.
    """

    free: tuple[str, ...] = ("v", "a", "z", "t0")
    by: tuple[str, ...] = ("v",)
    formulas: tuple[str, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)
    outliers: Outliers = field(default_factory=Outliers)
    s: float = 1.0

    def __post_init__(self) -> None:
        known = (*NAMES, "s")
        for what in ("free", "by", "fixed", "bounds", "links", "start"):
            for name in getattr(self, what):
                if name not in known[:-1]:
                    raise FastdiffError(
                        f"fit does not know {name!r} (in {what}); parameters are {', '.join(NAMES)}"
                    )
        for name, (low, high) in self.bounds.items():
            least, most = LIMITS[name]
            if not least <= low < high <= most:
                raise FastdiffError(
                    f"bounds of {name} must lie between {least:g} and {most:g}, got {low:g} to {high:g}"
                )
        for name, value in self.fixed.items():
            if not math.isfinite(value):
                raise FastdiffError(f"{name} must be finite, got {value}")
        for name, link in self.links.items():
            if link not in ("identity", "log", "logit"):
                raise FastdiffError(f"the link of {name} must be identity, log or logit, got {link!r}")
        if not self.s > 0:
            raise FastdiffError(f"s (the noise) must be positive, got {self.s:g}")
        if not self.estimated:
            raise FastdiffError(f"nothing is free; free is made of {', '.join(NAMES)}")
        for name in ("v", "a"):
            if name not in self.estimated and name not in self.fixed:
                raise FastdiffError(f"{name} is neither free nor fixed; list it in free, or give it a value")

    @property
    def estimated(self) -> tuple[str, ...]:
        """Names that are fitted, in the order of NAMES."""
        named = {formula.split("~")[0].strip() for formula in self.formulas}
        return tuple(n for n in NAMES if n in named or n in self.free or n in self.by and n not in self.fixed)

    def constant(self, name: str) -> float:
        """The value of a parameter that is not fitted."""
        return float(self.fixed.get(name, {"z": 0.5, "p_outlier": 0.05}.get(name, 0.0)))


@dataclass(frozen=True)
class Term:
    """One free parameter: rows @ coefficients, through the link, at the row that each trial names."""

    name: str
    labels: tuple[str, ...]  # of the coefficients: "" (shared), conditions, or the formula's columns
    rows: Tensor  # [M, K]
    index: Tensor | None  # [N] row of each trial; None where there is but one
    link: Link
    low: float
    high: float
    formula: str | None = None

    def natural(self, coefficients: Tensor) -> Tensor:
        """[K] -> the parameter at each row, [M]."""
        eta = coefficients if self.formula is None else self.rows @ coefficients
        if self.link == "identity":
            return eta
        if self.link == "log":
            return self.low + eta.exp()
        return self.low + (self.high - self.low) * torch.sigmoid(eta)

    def log_slope(self, coefficients: Tensor) -> Tensor:
        """log |d parameter / d coefficient| [K] where there is no formula, up to a constant."""
        if self.link == "identity":
            return torch.zeros_like(coefficients)
        if self.link == "log":
            return coefficients
        return F.logsigmoid(coefficients) + F.logsigmoid(-coefficients)

    def at(self, trials: Tensor) -> Term:
        """The same parameter for other trials, given by number or by a mask; unused rows are left out."""
        if self.index is None:
            return self
        if self.formula is None:
            return replace(self, index=self.index[trials])
        used, index = torch.unique(self.index[trials], return_inverse=True)
        return replace(self, rows=self.rows[used], index=index)

    def coordinate(self, value: float) -> float:
        """The link of a value, which is moved away from the bounds."""
        if self.link == "identity":
            return value
        if self.link == "log":
            return math.log(max(value - self.low, 1e-6))
        share = min(max((value - self.low) / (self.high - self.low), 1e-3), 1 - 1e-3)
        return math.log(share / (1 - share))


def make_terms(
    design: Design, conditions: tuple[str, ...], codes: Tensor, columns: Mapping[str, Any], first: Tensor
) -> list[Term]:
    """All free parameters. first: the shortest response of each condition, above which t0 cannot lie without outliers.

    Raises:
        FastdiffError: formulaic missing, a formula that it cannot read, missing columns.
    """
    formulas = {formula.split("~")[0].strip(): formula for formula in design.formulas}
    for name, formula in formulas.items():
        if "~" not in formula or name not in NAMES:
            raise FastdiffError(
                f"a formula is 'PARAMETER ~ TERMS' with one of {', '.join(NAMES)}, got {formula!r}"
            )
    outliers = "p_outlier" in design.estimated or design.constant("p_outlier") > 0
    terms = []
    for name in design.estimated:
        low, high = design.bounds.get(name, LIMITS[name])
        if name == "t0" and not outliers and name not in formulas:
            high = min(high, float(first.min()))
        link = design.links.get(name) or (
            "identity" if low == -math.inf else "log" if high == math.inf else "logit"
        )
        if name in formulas:
            labels, rows, index = _formula(formulas[name], columns, len(codes))
        elif name in design.by and len(conditions) > 1:
            labels, rows, index = conditions, torch.eye(len(conditions), dtype=torch.float64), codes
        else:
            labels, rows, index = ("",), torch.ones(1, 1, dtype=torch.float64), None
        terms.append(Term(name, labels, rows, index, link, low, high, formulas.get(name)))
    return terms


def _formula(formula: str, columns: Mapping[str, Any], trials: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    try:
        import pandas as pd  # pyright: ignore[reportMissingImports]
        from formulaic import model_matrix  # pyright: ignore[reportMissingImports]
        from formulaic.errors import FormulaicError  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FastdiffError("formulas need formulaic: pip install formulaic") from None
    for name, column in columns.items():
        if len(column) != trials:
            raise FastdiffError(
                f"column {name!r} must have one value for each trial: {trials}, got {len(column)}"
            )
    try:
        matrix = model_matrix(formula.split("~", 1)[1], pd.DataFrame(dict(columns)))
    except (FormulaicError, NameError, KeyError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        known = ", ".join(columns) or "none"
        raise FastdiffError(f"cannot use the formula {formula!r}: {reason}; columns are: {known}") from None
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape[0] != trials or not np.isfinite(values).all():
        raise FastdiffError(
            f"the formula {formula!r} gives no number for some trials; leave these trials out"
        )
    rows, index = np.unique(values, axis=0, return_inverse=True)
    return tuple(map(str, matrix.columns)), torch.from_numpy(rows), torch.from_numpy(index.reshape(-1))


def label_conditions(condition: Sequence[Any] | None, n: int) -> tuple[tuple[str, ...], Tensor]:
    """Labels in order of appearance, and each trial's number among them.

    Raises:
        FastdiffError: not one label for each trial.
    """
    if condition is None:
        return ("all",), torch.zeros(n, dtype=torch.int64)
    if len(condition) != n:
        raise FastdiffError(f"condition must have one label for each trial: {n}, got {len(condition)}")
    given = [str(c) for c in np.asarray(condition).tolist()]
    labels = tuple(dict.fromkeys(given))
    number = {label: i for i, label in enumerate(labels)}
    return labels, torch.tensor([number[c] for c in given])
