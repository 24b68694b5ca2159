"""Fits: the parameters under which the observed trials are most probable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch

from fastdiff.decision.design import NAMES, Design, label_conditions
from fastdiff.decision.likelihood import Outliers, check_trials
from fastdiff.decision.problem import FAILED, Problem, Trials
from fastdiff.errors import FastdiffError

Method = Literal["ml", "chisquare", "gsquare"]
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]
_SECONDS_AT_MOST = 20.0  # a median above this is in milliseconds
_AT_A_BOUND = 8.0  # of a logit; or of a logarithm downwards


@dataclass(frozen=True)
class Fit:
    """The result of a fit. z and sz are fractions of a, t0 is the lower edge of its range.

    An estimate is a number, a list with one number for each condition, or, for a formula, a dict of coefficients on the
    scale of ``links``. ``standard_errors`` has the same form, for the free parameters only, from the curvature at the
    maximum; NaN where there is no standard error.
    """

    conditions: tuple[str, ...]
    estimates: dict[str, Any]
    standard_errors: dict[str, Any]
    log_likelihood: float
    trials: int
    missing: int  # responses that did not come by the deadline, among the trials
    converged: bool
    message: str  # the optimiser's
    method: Method
    objective: float  # what was minimised: -log_likelihood, chi-square or G-square
    start_values: tuple[float, ...]  # the objective reached from each start
    warnings: tuple[str, ...]
    links: dict[str, str]
    outliers: dict[str, Any]
    coordinates: dict[str, float] = field(repr=False)  # where the optimiser ended, by name
    problem: Problem = field(repr=False, compare=False)
    covariance: np.ndarray = field(repr=False, compare=False)  # of the coordinates

    @property
    def free(self) -> int:
        """Number of parameters fitted."""
        return len(self.coordinates)

    @property
    def aic(self) -> float:
        return 2 * self.free - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        return self.free * math.log(self.trials) - 2 * self.log_likelihood

    @property
    def x(self) -> np.ndarray:
        """The coordinates as an array."""
        return np.array(list(self.coordinates.values()))

    def of(self, condition: str | None = None) -> dict[str, Any]:
        """The parameters of one condition, as arguments of ``pdf``, ``simulate`` and ``moments``.

        Raises:
            FastdiffError: no such condition; a formula that gives its trials different parameters.
        """
        condition = self.conditions[0] if condition is None else condition
        if condition not in self.conditions:
            raise FastdiffError(f"no condition {condition!r}; there are: {', '.join(self.conditions)}")
        here = self.problem.trials.codes == self.conditions.index(condition)
        found = {}
        for name, value in self.trial_parameters().items():
            values = np.unique(value[here.numpy()]) if np.ndim(value) else [float(value)]
            if len(values) > 1:
                raise FastdiffError(
                    f"{name} differs between the trials of {condition!r}; use trial_parameters()"
                )
            found[name] = float(values[0])
        return found

    def trial_parameters(self) -> dict[str, Any]:
        """The parameters of each trial, [N] or a number, as arguments of ``pdf``, ``simulate`` and ``moments``."""
        natural = self.problem.natural(torch.from_numpy(self.x))
        index = {term.name: term.index for term in self.problem.terms}
        found: dict[str, Any] = {"s": self.problem.design.s}
        for name in NAMES[:-1]:
            if name not in natural:
                found[name] = self.problem.design.constant(name)
            else:
                rows = index[name]
                found[name] = float(natural[name][0]) if rows is None else natural[name][rows].numpy()
        return found

    def rows(self) -> list[tuple[str, str, float, float | None]]:
        """Parameter, condition or coefficient, estimate and standard error (None: fixed), for tables."""
        table = []
        for name, value in self.estimates.items():
            error: Any = self.standard_errors.get(name)
            if isinstance(value, dict):
                table += [(name, label, x, error[label]) for label, x in value.items()]
            elif isinstance(value, list):
                table += [(name, c, x, e) for c, x, e in zip(self.conditions, value, error, strict=True)]
            else:
                table.append((name, "", value, error))
        return table

    def summary(self) -> str:
        """A table of the estimates, with information about the fit."""
        lines = ["parameter        estimate  standard error"]
        for name, label, value, error in self.rows():
            said = "fixed" if error is None else f"{error:.4f}"
            lines.append(f"{name:<9} {label:<10} {value:9.4f}  {said:>14}" if len(label) <= 10
                         else f"{name:<9} {label}\n{value:30.4f}  {said:>14}")  # fmt: skip
        lines.append(f"log-likelihood  {self.log_likelihood:.2f}   AIC {self.aic:.2f}   BIC {self.bic:.2f}")
        if self.method != "ml":
            lines.append(f"{self.method:<15} {self.objective:.2f}")
        lines += (
            [f"links           {', '.join(f'{n}: {x}' for n, x in self.links.items())}"] if self.links else []
        )
        if len(self.start_values) > 1:
            near = sum(v < self.objective + 0.01 for v in self.start_values)
            lines.append(f"starts          {near} of {len(self.start_values)} ended at the best")
        lines.append(f"optimiser       {'converged' if self.converged else 'stopped: ' + self.message}")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def as_dict(self) -> dict[str, Any]:
        """All results, for JSON."""
        left_out = ("problem", "covariance")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {**plain, "aic": self.aic, "bic": self.bic, "covariance": self.covariance.tolist()}


def fit(
    rt: Any,
    choice: Any,
    condition: Sequence[Any] | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    deadline: Any = None,
    method: Method = "ml",
    starts: int = 1,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    **design: Any,
) -> Fit:
    """Fit the decision model to trials.

    Maximises :func:`fastdiff.decision.log_likelihood`, or minimises a distance between quantiles, over coordinates
    without bounds (log a, logit z, ...) by SciPy's L-BFGS-B with exact gradients, from EZ's v and a.

    Args:
        rt: [N] seconds.
        choice: [N], 1 upper and 0 lower; -1 for a response missing at the deadline (its rt is ignored).
        condition: [N] labels.
        columns: name -> [N], what formulas may use beside ``condition``.
        deadline: seconds, one or [N]; a missing response counts by the probability that none comes by then.
        method: "ml", or "chisquare" or "gsquare" over the quantiles 0.1, 0.3, 0.5, 0.7, 0.9 of each condition's two
            response time distributions.
        starts: number of starts; the first is EZ's, the others are scattered around it. The best result is kept.
        seed: random seed of the scatter.
        progress: called after each iteration with its number and the log-likelihood (the distance, negated).
        design: the fields of :class:`Design`: free, by, formulas, bounds, links, start, s; outliers, an
            :class:`Outliers` or its kind; any parameter's name with a number fixes it, e.g. ``a=1.5``,
            ``p_outlier=0`` (default 0.05).

    Raises:
        FastdiffError: SciPy missing; no trials, NaN, times not positive; unknown names; bounds that cannot be.

    Warns:
        UserWarning: for each of :attr:`Fit.warnings`: times that look like milliseconds, parameters that the data do
            not tell apart or that ended at a bound.

    Source: Ratcliff & Tuerlinckx 2002, "Estimating parameters of the diffusion model"; Myung 2003.
    """
    problem = make_problem(rt, choice, condition, columns=columns, deadline=deadline, **design)
    found = solve(problem, method=method, starts=starts, seed=seed, progress=progress)
    for text in found.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    return found


def make_problem(
    rt: Any, choice: Any, condition: Sequence[Any] | None = None, *, columns: Mapping[str, Any] | None = None,
    deadline: Any = None, **design: Any,
) -> Problem:  # fmt: skip
    """The problem that :func:`fit` solves, from its arguments."""
    times, upper, missing = (x.flatten() for x in check_trials(rt, choice, deadline))
    labels, codes = label_conditions(condition, len(times))
    columns = {**({} if condition is None else {"condition": list(condition)}), **(columns or {})}
    latest = 0.0 if deadline is None else float(np.max(deadline))
    return Problem.of_design(
        Trials(times, upper, missing, codes), make_design(**design), labels, columns, latest
    )


def make_design(**given: Any) -> Design:
    """A design from keywords: numbers under parameters' names are fixed, everything else is a field of Design."""
    fixed = {**given.pop("fixed", {})}
    for name in NAMES:
        if name in given:
            value = given.pop(name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise FastdiffError(f"{name} must be a number, which fixes it, got {value!r}")
            fixed[name] = float(value)
    for name in ("free", "by", "formulas"):
        if isinstance(given.get(name), str):
            given[name] = (given[name],)
    free = given.pop("free", None)
    both = [name for name in free or () if name in fixed]
    if both:
        raise FastdiffError(f"{both[0]} is both free and fixed at {fixed[both[0]]:g}; give one of the two")
    free = tuple(n for n in ("v", "a", "z", "t0") if n not in fixed) if free is None else tuple(free)
    if isinstance(given.get("outliers"), str):
        given["outliers"] = Outliers(given["outliers"])
    known = {f.name for f in fields(Design)}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise FastdiffError(
            f"fit does not know {unknown[0]!r}; it knows {', '.join((*NAMES, *sorted(known)))}"
        )
    given["by"] = tuple(given["by"]) if "by" in given else tuple(n for n in ("v",) if n in free)
    if "formulas" in given:
        given["formulas"] = tuple(given["formulas"])
    return Design(free=free, fixed=fixed, **given)


def solve(
    problem: Problem, *, method: Method = "ml", starts: int = 1, seed: int = 0,
    progress: Callable[[int, float], None] | None = None, errors: bool = True, begin: np.ndarray | None = None,
) -> Fit:  # fmt: skip
    """Minimise; see :func:`fit`. begin: coordinates to start at; errors: True to compute standard errors."""
    if isinstance(starts, bool) or not isinstance(starts, int) or starts < 1:
        raise FastdiffError(f"starts must be a whole number of at least 1, got {starts!r}")
    objective = _objective(problem, method)
    first = problem.start() if begin is None else begin
    scatter = np.random.default_rng(seed).normal(0, 0.5, (starts, len(first)))
    scatter[0] = 0
    ends = [minimise(objective, first + shift, len(problem.trials), progress) for shift in scatter]
    best = min(ends, key=lambda end: end.fun)
    if best.fun >= FAILED:
        raise FastdiffError("no start has a likelihood; give start values, or p_outlier above 0")
    information = problem.information(best.x) if errors else np.full((len(best.x),) * 2, math.nan)
    covariance = _inverse(information)
    natural_errors = _natural_errors(problem, best.x, covariance)
    estimates = _estimates(problem, problem.natural(torch.from_numpy(best.x)), best.x)
    value = -problem.value_and_gradient(best.x)[0] if method != "ml" else -float(best.fun)
    return Fit(
        conditions=problem.conditions,
        estimates=estimates,
        standard_errors=natural_errors,
        log_likelihood=value,
        trials=len(problem.trials),
        missing=int(problem.trials.missing.sum()),
        converged=bool(best.success),
        message=str(best.message),
        method=method,
        objective=float(best.fun),
        start_values=tuple(float(end.fun) for end in ends),
        warnings=tuple(_complaints(problem, best.x, covariance if errors else None)),
        links={t.name: t.link for t in problem.terms if t.formula},
        outliers=vars(problem.outliers),
        coordinates=dict(zip(problem.labels, best.x.tolist(), strict=True)),
        problem=problem,
        covariance=covariance,
    )


def minimise(
    objective: Objective, start: np.ndarray, trials: int, progress: Callable[[int, float], None] | None = None
) -> Any:
    """Minimise with SciPy.

    Raises:
        FastdiffError: SciPy missing.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise FastdiffError("fitting needs SciPy: pip install 'fastdiff[decision]'") from None
    rounds = 0

    def report(intermediate_result: Any) -> None:
        nonlocal rounds
        rounds += 1
        if progress is not None:
            progress(rounds, -float(intermediate_result.fun))

    return minimize(
        objective, start, jac=True, method="L-BFGS-B", callback=report,
        options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-5 * trials},
    )  # fmt: skip


def _objective(problem: Problem, method: Method) -> Objective:
    if method == "ml":
        return problem.value_and_gradient
    if method not in ("chisquare", "gsquare"):
        raise FastdiffError(f"method must be ml, chisquare or gsquare, got {method!r}")
    from fastdiff.decision.quantiles import QuantileDistance

    return QuantileDistance(problem, method).value_and_gradient


def _inverse(information: np.ndarray) -> np.ndarray:
    if not np.isfinite(information).all():
        return np.full_like(information, math.nan)
    return np.linalg.pinv(information, rcond=1e-12, hermitian=True)


def _natural_errors(problem: Problem, x: np.ndarray, covariance: np.ndarray) -> dict[str, Any]:
    """Standard errors by the delta method; those of a formula's coefficients unchanged."""
    plain = [term.name for term in problem.terms if not term.formula]

    def values(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        natural = problem.natural(y)
        return tuple(natural[name] for name in plain)

    jacobians: Any = torch.autograd.functional.jacobian(values, torch.from_numpy(x)) if plain else ()
    slopes = dict(zip(plain, jacobians, strict=True))
    found, offset = {}, 0
    for term in problem.terms:
        part = slice(offset, offset + len(term.labels))
        offset += len(term.labels)
        j = np.eye(len(x))[part] if term.formula else slopes[term.name].numpy()
        variances = np.einsum("ik,kl,il->i", j, covariance, j)
        errors = np.sqrt(np.where(variances > 0, variances, math.nan))
        found[term.name] = _shaped(problem, term, errors.tolist())
    return found


def _estimates(problem: Problem, natural: dict[str, Any], x: np.ndarray) -> dict[str, Any]:
    pieces = problem.split(torch.from_numpy(x))
    found: dict[str, Any] = {n: problem.design.constant(n) for n in NAMES} | {"s": problem.design.s}
    for term in problem.terms:
        values = pieces[term.name] if term.formula else natural[term.name]
        found[term.name] = _shaped(problem, term, values.tolist())
    return found


def _shaped(problem: Problem, term: Any, values: list[float]) -> Any:
    if term.formula:
        return dict(zip(term.labels, values, strict=True))
    # v has always been a list, one drift for each condition
    alone = term.index is None and not (term.name == "v" and "v" in problem.design.by)
    return values[0] if alone else values


def _complaints(problem: Problem, x: np.ndarray, covariance: np.ndarray | None) -> list[str]:
    said, times, upper = [], problem.trials.times, problem.trials.upper
    if len(times) and float(times.median()) > _SECONDS_AT_MOST:
        said.append(
            f"the median response time is {float(times.median()):g} s; rt must be in seconds, not milliseconds"
        )
    if len(times) and bool((upper == upper[0]).all()):
        side = "upper" if bool(upper[0]) else "lower"
        said.append(
            f"all responses are at the {side} boundary: v, a and z are hardly told apart; fix one of them"
        )
    offset = 0
    for term in problem.terms:
        for label, value in zip(term.labels, x[offset : offset + len(term.labels)], strict=True):
            name = f"{term.name}[{label}]" if label else term.name
            at_low = term.link != "identity" and term.formula is None and value < -_AT_A_BOUND
            at_high = term.link == "logit" and term.formula is None and value > _AT_A_BOUND
            if at_low or at_high:
                said.append(f"{name} ended at its {'lower' if at_low else 'upper'} bound")
        offset += len(term.labels)
    if covariance is not None:
        variances = np.diag(covariance)
        for name, variance in zip(problem.labels, variances, strict=True):
            if not variance > 0 or variance > 25 * max(1.0, problem.design.s**2 if name[0] == "v" else 1.0):
                said.append(f"the data do not identify {name}; fix it, or share it between conditions")
    return said
