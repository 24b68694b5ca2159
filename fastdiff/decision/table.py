"""Trials as CSV files: columns rt and choice, and one that tells conditions apart."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

_WORDS = {"1": 1, "upper": 1, "0": 0, "lower": 0, "-1": -1}


@dataclass(frozen=True)
class Table:
    """Trials with a decision; those without one are only counted."""

    rt: np.ndarray  # [N] seconds
    choice: np.ndarray  # [N] 1 upper, 0 lower
    condition: list[str] | None  # None where the file has no such column
    undecided: int


def write_trials(path: Path, rt: Iterable[float], choice: Iterable[int], condition: Sequence[str]) -> None:
    """Columns condition, rt (seconds; inf where there was no decision), choice (1, 0, -1).

    Raises:
        FastdiffError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("condition", "rt", "choice"))
        writer.writerows((c, f"{t:.7g}", k) for c, t, k in zip(condition, rt, choice, strict=True))


def read_trials(path: Path, condition: str = "condition") -> Table:
    """A table from a CSV file with the columns rt and choice and, if there are conditions, ``condition``.

    Raises:
        FastdiffError: no such file, no such columns, no trials; a time that is no positive number of seconds, a
            choice other than 1, 0, upper, lower or -1 (no decision).
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or [], condition)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise FastdiffError(f"cannot read {path}: {error.strerror or error}; give a CSV file") from None
    except (UnicodeDecodeError, csv.Error):
        raise FastdiffError(f"{path} is no CSV file of text") from None
    parsed = [(_trial(path, line, row), row.get(condition)) for line, row in rows]
    decided = [(rt, choice, label) for (rt, choice), label in parsed if choice >= 0]
    if not decided:
        raise FastdiffError(f"{path} holds no trial with a decision")
    rt, choice, labels = zip(*decided, strict=True)
    named = labels[0] is not None
    conditions = [str(label) for label in labels] if named else None
    return Table(np.array(rt), np.array(choice), conditions, len(parsed) - len(decided))


def _check_columns(path: Path, columns: Sequence[str], condition: str) -> None:
    for name in ("rt", "choice"):
        if name not in columns:
            raise FastdiffError(f"{path} has no column {name!r}; it has: {', '.join(columns) or 'none'}")
    if condition != "condition" and condition not in columns:
        raise FastdiffError(f"{path} has no column {condition!r}; it has: {', '.join(columns)}")


def _trial(path: Path, line: int, row: dict[str, str | None]) -> tuple[float, int]:
    given = (row["choice"] or "").strip().lower()
    choice = _WORDS.get(given.removesuffix(".0"))
    if choice is None:
        raise FastdiffError(
            f"{path}, line {line}: choice must be 1 or 'upper', 0 or 'lower', or -1 (no decision), got {given!r}"
        )
    try:
        rt = float(row["rt"] or "")
    except ValueError:
        rt = math.nan
    if choice == -1 and math.isfinite(rt) and rt > 0:
        raise FastdiffError(
            f"{path}, line {line}: choice -1 means no decision, but rt is {rt:g}; write the lower boundary as 0"
        )
    if choice >= 0 and not 0 < rt < math.inf:
        raise FastdiffError(
            f"{path}, line {line}: rt must be a positive number of seconds, got {row['rt']!r}"
        )
    return rt, choice
