"""Many subjects: a fit for each of them, side by side."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdiff.decision.design import label_conditions
from fastdiff.decision.fit import Fit, make_design, make_problem, solve
from fastdiff.decision.likelihood import check_trials
from fastdiff.errors import FastdiffError


@dataclass(frozen=True)
class SubjectFits:
    """One fit for each subject."""

    subjects: tuple[str, ...]
    fits: tuple[Fit, ...]

    def table(self) -> list[dict[str, Any]]:
        """A row for each subject and estimate: subject, parameter, condition, estimate, standard_error."""
        names = ("parameter", "condition", "estimate", "standard_error")
        return [
            {"subject": subject, **dict(zip(names, row, strict=True))}
            for subject, found in zip(self.subjects, self.fits, strict=True)
            for row in found.rows()
            if row[3] is not None
        ]

    def columns(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """(parameter, condition) -> estimates and standard errors of all subjects, NaN where one has none."""
        found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        number = {subject: i for i, subject in enumerate(self.subjects)}
        for row in self.table():
            key = row["parameter"], row["condition"]
            values = found.setdefault(key, (np.full(len(number), np.nan), np.full(len(number), np.nan)))
            values[0][number[row["subject"]]] = row["estimate"]
            values[1][number[row["subject"]]] = row["standard_error"]
        return found

    def summary(self) -> str:
        """Mean and spread of each parameter over the subjects."""
        lines = ["parameter             mean   standard error   between subjects"]
        for (name, label), (values, _) in self.columns().items():
            some = values[np.isfinite(values)]
            spread = float(some.std(ddof=1)) if len(some) > 1 else float("nan")
            lines.append(
                f"{name:<9} {label:<10} {some.mean():8.4f} {spread / len(some) ** 0.5:16.4f} {spread:18.4f}"
            )
        done = sum(found.converged for found in self.fits)
        total = sum(found.log_likelihood for found in self.fits)
        lines.append(f"log-likelihood  {total:.2f}, all subjects together")
        lines.append(f"optimiser       {done} of {len(self.fits)} subjects converged")
        for subject, found in zip(self.subjects, self.fits, strict=True):
            lines += [f"warning: subject {subject}: {text}" for text in found.warnings]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """All results, for JSON."""
        return {"subjects": {s: f.as_dict() for s, f in zip(self.subjects, self.fits, strict=True)}}


def fit_subjects(
    rt: Any,
    choice: Any,
    subject: Sequence[Any],
    condition: Sequence[Any] | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    deadline: Any = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> SubjectFits:
    """:func:`fastdiff.decision.fit` of each subject's trials by themselves.

    Args:
        subject: [N] labels.
        workers: processes that share the subjects. More than one starts new interpreters (some seconds each), so that
            a script that asks for it needs ``if __name__ == "__main__":``.
        progress: called after each subject with how many are done, and how many there are.
        rt, choice, condition, columns, deadline, options: as in ``fit``.

    Raises:
        FastdiffError: as ``fit``; not one subject for each trial.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise FastdiffError(f"workers must be a whole number of at least 1, got {workers!r}")
    parts = split_subjects(rt, choice, subject, condition, columns, deadline)
    # One range of outliers for all, so that the subjects' likelihoods are of one kind.
    times, _, missing = check_trials(rt, choice, deadline)
    latest = 0.0 if deadline is None else float(np.max(deadline))
    solving = {n: options.pop(n) for n in ("method", "starts", "seed") if n in options}
    design = make_design(**options)
    responses = times[~missing] if bool((~missing).any()) else times
    options["outliers"] = design.outliers.of(responses, latest)
    work = functools.partial(_fit_one, options, solving)
    fits = []
    if workers == 1:
        _gather(map(work, parts.values()), fits, len(parts), progress)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(parts)), context, torch.set_num_threads, (1,)) as pool:
            _gather(pool.map(work, parts.values()), fits, len(parts), progress)
    return SubjectFits(tuple(parts), tuple(fits))


def split_subjects(
    rt: Any, choice: Any, subject: Sequence[Any], condition: Sequence[Any] | None,
    columns: Mapping[str, Any] | None, deadline: Any,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Subject -> the arguments of ``make_problem``."""
    rt, choice = np.asarray(rt, dtype=np.float64), np.asarray(choice)
    labels, codes = label_conditions(subject, len(rt))
    given: dict[str, Any] = {"rt": rt, "choice": choice}
    if condition is not None:
        label_conditions(condition, len(rt))
        given["condition"] = np.asarray([str(c) for c in condition])
    parts = {}
    for code, label in enumerate(labels):
        here = codes.numpy() == code
        part = {name: x[here] for name, x in given.items()}
        part["columns"] = {name: np.asarray(x)[here] for name, x in (columns or {}).items()}
        part["deadline"] = np.asarray(deadline)[here] if np.ndim(deadline) else deadline
        parts[label] = part
    return parts


def _fit_one(options: dict[str, Any], solving: dict[str, Any], part: dict[str, Any]) -> Fit:
    return solve(make_problem(**part, **options), **solving)


def _gather(
    results: Iterable[Fit], into: list[Fit], count: int, progress: Callable[[int, int], None] | None
) -> None:
    for found in results:
        into.append(found)
        if progress is not None:
            progress(len(into), count)
