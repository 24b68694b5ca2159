"""Hierarchical fits: subjects as draws from a group, whose mean and spread are fitted with all subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.decision.design import label_conditions
from fastdiff.decision.fit import make_problem, minimise
from fastdiff.decision.problem import FAILED, Problem, Trials
from fastdiff.errors import FastdiffError

_SMALLEST = 1e-3  # deviation between subjects


@dataclass(frozen=True)
class HierarchicalFit:
    """The group, and the subjects given the group. Coordinates: v as it is, log a, logit z, log t0, ..."""

    subjects: tuple[str, ...]
    names: tuple[str, ...]  # of the coordinates, [K]
    mean: np.ndarray  # [K] of the group
    mean_errors: np.ndarray  # [K] standard errors
    deviation: np.ndarray  # [K] between subjects
    coordinates: np.ndarray  # [S, K] of each subject, at the maximum of its posterior
    covariances: np.ndarray  # [S, K, K] Laplace's
    log_evidence: float  # log p(data | group), Laplace's
    iterations: int
    converged: bool
    problems: tuple[Problem, ...] = field(repr=False, compare=False)

    def natural(self, coordinates: np.ndarray) -> dict[str, Any]:
        """Coordinates [K] -> parameters in their own units, by the names that ``Fit.estimates`` uses."""
        problem = self.problems[0]
        x = torch.as_tensor(coordinates, dtype=torch.float64)
        values, pieces = problem.natural(x), problem.split(x)
        found = {}
        for term in problem.terms:
            shown = pieces[term.name] if term.formula else values[term.name]
            for label, value in zip(term.labels, shown.tolist(), strict=True):
                found[f"{term.name}[{label}]" if label else term.name] = value
        return found

    @property
    def group(self) -> dict[str, float]:
        """The parameters at the group's mean, in their own units."""
        return self.natural(self.mean)

    def summary(self) -> str:
        """The group as a table: the mean in a parameter's own units, the rest on the coordinates' scale."""
        lines = ["parameter            at the mean  coordinate  standard error   between subjects"]
        for (label, value), mean, error, spread in zip(
            self.group.items(), self.mean, self.mean_errors, self.deviation, strict=True
        ):
            lines.append(f"{label:<20} {value:11.4f} {mean:11.4f} {error:15.4f} {spread:18.4f}")
        lines.append(f"log-evidence    {self.log_evidence:.2f} (Laplace)")
        lines.append(
            f"iterations      {self.iterations}, {'converged' if self.converged else 'not converged'}"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """All results, for JSON."""
        subjects = {s: self.natural(x) for s, x in zip(self.subjects, self.coordinates, strict=True)}
        plain = {n: getattr(self, n).tolist() for n in ("mean", "mean_errors", "deviation")}
        ended = {n: getattr(self, n) for n in ("log_evidence", "iterations", "converged")}
        return {"names": self.names, **plain, "group": self.group, "subjects": subjects, **ended}


def fit_hierarchical(
    rt: Any,
    choice: Any,
    subject: Sequence[Any],
    condition: Sequence[Any] | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    deadline: Any = None,
    iterations: int = 60,
    tolerance: float = 2e-3,
    progress: Callable[[int, float], None] | None = None,
    **design: Any,
) -> HierarchicalFit:
    r"""Fit all subjects and the group they come from.

    Each subject's coordinates (the links of its parameters) are normal around the group's, x_i ~ N(mu, diag sigma^2).
    Expectation-maximisation with Laplace's approximation V_i of each subject's posterior:

    .. math::
        \mu = \frac1S \sum_i x_i, \qquad \sigma^2 = \frac1S \sum_i \big[ (x_i - \mu)^2 + \operatorname{diag} V_i \big]

    Standard errors of mu: the complete information S / sigma^2 less what is missing, sum V_i / sigma^4 (Louis 1982).

    Args:
        iterations, tolerance: until mu moves by less than ``tolerance`` standard deviations between subjects.
        progress: called after each iteration with its number and the log-evidence.
        rt, choice, subject, condition, columns, deadline, design: as in ``fit_subjects``; p_outlier must be above 0, so
            that a subject's t0 may be above another's fastest response.

    Raises:
        FastdiffError: as ``fit``; fewer than two subjects; p_outlier = 0.

    Source: Huys et al. 2011, "Disentangling the roles of approach, activation and valence in instrumental and Pavlovian
    responding", on the method; Wiecki, Sofer & Frank 2013 (HDDM) on the model.
    """
    problems = subject_problems(rt, choice, subject, condition, columns, deadline, design)
    first = next(iter(problems.values()))
    x = np.stack([p.start() for p in problems.values()])
    mu, sigma = x.mean(0), np.maximum(x.std(0), 0.5)
    values: list[float] = []
    for number in range(1, iterations + 1):
        for i, problem in enumerate(problems.values()):
            x[i] = _posterior_mode(problem, x[i], mu, sigma)
        if number <= 3 or number % 6 == 0:  # the likelihoods' curvatures change slowly
            curvatures = np.stack([p.information(x[i]) for i, p in enumerate(problems.values())])
        covariances = np.linalg.inv(curvatures + np.diag(sigma**-2))
        values.append(_log_evidence(list(problems.values()), x, mu, sigma, covariances))
        if progress is not None:
            progress(number, values[-1])
        new = x.mean(0)
        variances = ((x - new) ** 2).mean(0) + np.diagonal(covariances, axis1=1, axis2=2).mean(0)
        change = np.abs(new - mu) / sigma
        shrunk = np.abs(np.sqrt(variances) / sigma - 1)
        mu, sigma = new, np.maximum(np.sqrt(variances), _SMALLEST)
        if max(change.max(), shrunk.max() / 4) < tolerance:
            break
    curvatures = np.stack([p.information(x[i]) for i, p in enumerate(problems.values())])
    covariances = np.linalg.inv(curvatures + np.diag(sigma**-2))
    missing = sigma[:, None] ** -2 * covariances.sum(0) * sigma**-2
    errors = np.sqrt(np.diag(np.linalg.pinv(len(x) * np.diag(sigma**-2) - missing, hermitian=True)))
    return HierarchicalFit(
        subjects=tuple(problems),
        names=tuple(first.labels),
        mean=mu,
        mean_errors=errors,
        deviation=sigma,
        coordinates=x,
        covariances=covariances,
        log_evidence=_log_evidence(list(problems.values()), x, mu, sigma, covariances),
        iterations=len(values),
        converged=len(values) < iterations,
        problems=tuple(problems.values()),
    )


def subject_problems(
    rt: Any, choice: Any, subject: Sequence[Any], condition: Sequence[Any] | None,
    columns: Mapping[str, Any] | None, deadline: Any, design: dict[str, Any],
) -> dict[str, Problem]:  # fmt: skip
    """A problem for each subject, all with the same coordinates."""
    whole, labels, codes = group_problem(rt, choice, subject, condition, columns, deadline, design)
    data, found = whole.trials, {}
    for code, label in enumerate(labels):
        here = codes == code
        part = Trials(data.all_times[here], data.all_upper[here], data.missing[here], data.codes[here])
        found[label] = whole.of_trials(part, [term.at(here) for term in whole.terms])
    return found


def group_problem(
    rt: Any, choice: Any, subject: Sequence[Any], condition: Sequence[Any] | None,
    columns: Mapping[str, Any] | None, deadline: Any, design: dict[str, Any],
) -> tuple[Problem, tuple[str, ...], Tensor]:  # fmt: skip
    """One problem for all trials as if of one subject, the subjects' labels, and each trial's number among them.

    Raises:
        FastdiffError: as ``fit``; fewer than two subjects; p_outlier = 0.
    """
    whole = make_problem(rt, choice, condition, columns=columns, deadline=deadline, **design)
    if "p_outlier" not in whole.design.estimated and whole.design.constant("p_outlier") <= 0:
        raise FastdiffError("a hierarchical fit needs p_outlier above 0; HDDM's and HSSM's is 0.05")
    if len(subject) != len(whole.trials):
        raise FastdiffError(
            f"subject must have one label for each trial: {len(whole.trials)}, got {len(subject)}"
        )
    labels, codes = label_conditions(subject, len(whole.trials))
    if len(labels) < 2:
        raise FastdiffError(f"a hierarchical fit needs at least two subjects, got {len(labels)}")
    return whole, labels, codes


def _posterior_mode(problem: Problem, x: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.value_and_gradient(y)
        if value >= FAILED:
            return value, gradient
        off = (y - mu) / sigma
        return value + 0.5 * float(off @ off), gradient + off / sigma

    return minimise(objective, x, len(problem.trials)).x


def _log_evidence(
    problems: list[Problem], x: np.ndarray, mu: np.ndarray, sigma: np.ndarray, covariances: np.ndarray
) -> float:
    total = 0.0
    for problem, y, covariance in zip(problems, x, covariances, strict=True):
        off = (y - mu) / sigma
        total -= problem.value_and_gradient(y)[0] + 0.5 * float(off @ off) + float(np.log(sigma).sum())
        total += 0.5 * float(np.linalg.slogdet(covariance)[1])
    return total if math.isfinite(total) else -math.inf
