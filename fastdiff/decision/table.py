"""Trials as CSV files: response times and responses under any column names and in any coding."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

_WORDS = {"1": 1, "upper": 1, "0": 0, "lower": 0, "-1": -1}
_SIDES = {"upper": 1, "lower": 0, "missing": -1}
_NOTHING = ("", "na", "nan", "none", "inf")


@dataclass(frozen=True)
class Columns:
    """Where a file has what, and how it is written.

    coding: "upper", "lower" and "missing" -> the word in the response column, e.g. {"upper": "correct"}; with an upper
    word and no lower one, every other word is lower. more: columns that formulas need. skip_bad: leave out rows that
    cannot be used, and count them, where otherwise the first one is an error. rt_range: seconds; responses outside it
    are left out and counted.
    """

    rt: str = "rt"
    response: str = "choice"
    condition: str = "condition"
    subject: str | None = None
    unit: Literal["s", "ms"] = "s"
    coding: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    skip_bad: bool = False
    rt_range: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        for side in self.coding:
            if side not in _SIDES:
                raise FastdiffError(f"coding is made of upper=, lower= and missing=, got {side!r}")
        if self.unit not in ("s", "ms"):
            raise FastdiffError(f"the unit of rt must be 's' or 'ms', got {self.unit!r}")


@dataclass(frozen=True)
class Table:
    """Trials; those without a response have choice -1 and rt infinite."""

    rt: np.ndarray  # [N] seconds
    choice: np.ndarray  # [N] 1 upper, 0 lower, -1 no response
    condition: list[str] | None  # None where the file has no such column
    subject: list[str] | None
    more: dict[str, np.ndarray]
    skipped: dict[str, int]  # reason -> rows left out

    @property
    def undecided(self) -> int:
        """Trials without a response."""
        return int((self.choice == -1).sum())

    def decided(self) -> Table:
        """The trials with a response."""
        here = self.choice >= 0
        lists = {n: _chosen(getattr(self, n), here) for n in ("condition", "subject")}
        more = {name: column[here] for name, column in self.more.items()}
        return replace(self, rt=self.rt[here], choice=self.choice[here], more=more, **lists)


def write_trials(path: Path, rt: Iterable[float], choice: Iterable[int], condition: Sequence[str]) -> None:
    """Columns condition, rt (seconds; inf where there was no decision), choice (1, 0, -1).

    Raises:
        FastdiffError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("condition", "rt", "choice"))
        writer.writerows((c, f"{t:.7g}", k) for c, t, k in zip(condition, rt, choice, strict=True))


def read_trials(path: Path, columns: Columns | None = None) -> Table:
    """A table from a CSV file.

    Raises:
        FastdiffError: no such file, no such columns, no trials; a time that is no positive number, a response that the
            coding does not know.
    """
    columns = columns or Columns()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or [], columns)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise FastdiffError(f"cannot read {path}: {error.strerror or error}; give a CSV file") from None
    except (UnicodeDecodeError, csv.Error):
        raise FastdiffError(f"{path} is no CSV file of text") from None
    kept, skipped = [], {"cannot be used": 0, "outside the range of rt": 0}
    low, high = columns.rt_range
    for line, row in rows:
        try:
            rt, choice = _trial(path, line, row, columns)
        except FastdiffError:
            if not columns.skip_bad:
                raise
            skipped["cannot be used"] += 1
            continue
        if choice >= 0 and not low <= rt <= high:
            skipped["outside the range of rt"] += 1
        else:
            kept.append((rt, choice, row))
    if not any(choice >= 0 for _, choice, _ in kept):
        raise FastdiffError(f"{path} holds no trial with a decision")
    return Table(
        rt=np.array([rt for rt, _, _ in kept]),
        choice=np.array([choice for _, choice, _ in kept]),
        condition=_labels(kept, columns.condition),
        subject=_labels(kept, columns.subject),
        more={name: _column([row[name] for _, _, row in kept]) for name in columns.more},
        skipped={reason: count for reason, count in skipped.items() if count},
    )


def _labels(rows: list, name: str | None) -> list[str] | None:
    given = [row.get(name) for _, _, row in rows]
    return None if name is None or given[0] is None else [str(label) for label in given]


def _column(given: list[str]) -> np.ndarray:
    """Numbers if all are, else words."""
    try:
        return np.array([float(x) for x in given])
    except ValueError:
        return np.array(given)


def _chosen(labels: list[str] | None, here: np.ndarray) -> list[str] | None:
    return None if labels is None else [label for label, kept in zip(labels, here, strict=True) if kept]


def _check_columns(path: Path, found: Sequence[str], columns: Columns) -> None:
    wanted = [columns.rt, columns.response, *columns.more]
    wanted += [columns.condition] if columns.condition != "condition" else []
    wanted += [columns.subject] if columns.subject else []
    for name in wanted:
        if name not in found:
            raise FastdiffError(f"{path} has no column {name!r}; it has: {', '.join(found) or 'none'}")


def _trial(path: Path, line: int, row: dict[str, str | None], columns: Columns) -> tuple[float, int]:
    choice = _response(path, line, (row[columns.response] or "").strip(), columns)
    try:
        rt = float(row[columns.rt] or "") / (1000 if columns.unit == "ms" else 1)
    except ValueError:
        rt = math.nan
    if choice == -1 and not columns.coding and math.isfinite(rt) and rt > 0:
        raise FastdiffError(
            f"{path}, line {line}: choice -1 means no decision, but rt is {rt:g}; write the lower boundary as 0, "
            "or give --coding upper=1 lower=-1"
        )
    if choice >= 0 and not 0 < rt < math.inf:
        raise FastdiffError(
            f"{path}, line {line}: rt must be a positive number of seconds, got {row[columns.rt]!r}"
        )
    return (math.inf if choice == -1 else rt), choice


def _response(path: Path, line: int, given: str, columns: Columns) -> int:
    plain = given.lower().removesuffix(".0")
    if not columns.coding:
        if plain in _WORDS:
            return _WORDS[plain]
        raise FastdiffError(
            f"{path}, line {line}: {columns.response} must be 1 or 'upper', 0 or 'lower', or -1 (no decision), "
            f"got {given!r}; for other words give --coding upper=WORD lower=WORD"
        )
    for side, word in columns.coding.items():
        if plain == word.strip().lower().removesuffix(".0"):
            return _SIDES[side]
    if plain in _NOTHING and "missing" not in columns.coding:
        return -1
    if "lower" not in columns.coding:
        return 0
    if "upper" not in columns.coding:
        return 1
    known = ", ".join(f"{side} = {word}" for side, word in columns.coding.items())
    raise FastdiffError(f"{path}, line {line}: {columns.response} {given!r} is not in the coding: {known}")
