"""Confidence intervals of a fit's parameters: from profile likelihoods, and from fits of resampled data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from fastdiff.decision.fit import Fit, minimise, solve
from fastdiff.decision.problem import Problem, Trials
from fastdiff.errors import FastdiffError

_FURTHEST = 12.0  # standard errors that a profile is followed


@dataclass(frozen=True)
class Interval:
    """Confidence interval of the parameter of one coordinate, in the parameter's units."""

    low: float
    high: float
    level: float


def profile(found: Fit, name: str, level: float = 0.95) -> Interval:
    r"""The values of a parameter that the likelihood-ratio test does not reject.

    .. math:: \{ \theta : 2 [\ell(\hat\theta) - \max_{\eta} \ell(\theta, \eta)] \le \chi^2_{1, level} \}

    with everything else, eta, fitted again at each theta.

    Args:
        name: name of a coordinate, a key of ``found.coordinates``, such as "a" or "v[easy]".

    Raises:
        FastdiffError: no such coordinate; a fit by another method than maximum likelihood.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2

    number = _number_of(found, name)
    if found.method != "ml":
        raise FastdiffError("profiles are of a likelihood; fit with method='ml'")
    best, problem = found.x, found.problem
    others = [i for i in range(len(best)) if i != number]
    allowed = -found.log_likelihood + 0.5 * float(chi2.ppf(level, 1))
    place = best.copy()

    def excess(value: float) -> float:
        def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
            x = place.copy()
            x[number], x[others] = value, y
            total, gradient = problem.value_and_gradient(x)
            return total, gradient[others]

        if not others:
            return problem.value_and_gradient(np.array([value]))[0] - allowed
        return float(minimise(objective, place[others], len(problem.trials)).fun) - allowed

    step = float(np.sqrt(found.covariance[number, number]))
    step = step if np.isfinite(step) and step > 0 else 0.1
    ends = []
    for sign in (-1, 1):
        reach = 2.0
        while excess(best[number] + sign * reach * step) < 0 and reach < _FURTHEST:
            reach *= 1.5
        far = best[number] + sign * reach * step
        root: Any = far if excess(far) < 0 else brentq(excess, best[number], far, xtol=1e-4 * step)
        ends.append(float(root))
    low, high = (_natural(problem, best, number, end) for end in ends)
    return Interval(low, high, level)


def bootstrap(
    found: Fit,
    n: int = 200,
    *,
    kind: Literal["parametric", "trials"] = "parametric",
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Interval]:
    """Percentile intervals of all coordinates from n fits, each started at the estimate.

    Args:
        kind: "parametric" simulates each trial anew from the fitted model, outliers and deadlines included; "trials"
            draws as many trials of each condition with replacement.
        progress: called with 1 after each fit.

    Raises:
        FastdiffError: n below 2; another kind.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap".
    """
    if n < 2 or kind not in ("parametric", "trials"):
        raise FastdiffError(
            f"bootstrap needs n of at least 2 and kind parametric or trials, got {n} and {kind!r}"
        )
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        problem = _simulated(found, rng) if kind == "parametric" else _drawn(found.problem, rng)
        rows.append(solve(problem, method=found.method, errors=False, begin=found.x).x)
        progress(1)
    tails = (0.5 - level / 2, 0.5 + level / 2)
    ends = np.quantile(np.array(rows), tails, axis=0)
    intervals = {}
    for i, name in enumerate(found.coordinates):
        low, high = (_natural(found.problem, found.x, i, float(end)) for end in ends[:, i])
        intervals[name] = Interval(low, high, level)
    return intervals


def simulated_trials(found: Fit, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and choices of an experiment like the fitted one: posterior predictive data, outliers and all."""
    problem = found.problem
    return problem.simulate(problem.natural(torch.from_numpy(found.x)), np.random.default_rng(seed))


def _simulated(found: Fit, rng: np.random.Generator) -> Problem:
    problem, data = found.problem, found.problem.trials
    times, choice = simulated_trials(found, int(rng.integers(1 << 32)))
    late = np.zeros(len(times), dtype=bool)
    if bool(data.missing.any()):
        limit = float(data.all_times[data.missing].max())
        late = times > limit
        times[late] = limit
    part = Trials(torch.from_numpy(times), torch.from_numpy(choice == 1), torch.from_numpy(late), data.codes)
    return problem.of_trials(part, problem.terms)


def _drawn(problem: Problem, rng: np.random.Generator) -> Problem:
    data, rows = problem.trials, []
    for code in range(len(problem.conditions)):
        here = torch.nonzero(data.codes == code)[:, 0].numpy()
        rows.append(rng.choice(here, len(here)))
    drawn = torch.from_numpy(np.concatenate(rows))
    part = Trials(data.all_times[drawn], data.all_upper[drawn], data.missing[drawn], data.codes[drawn])
    return problem.of_trials(part, [term.at(drawn) for term in problem.terms])


def _number_of(found: Fit, name: str) -> int:
    if name not in found.coordinates:
        raise FastdiffError(f"no free parameter {name!r}; there are: {', '.join(found.coordinates)}")
    return list(found.coordinates).index(name)


def _natural(problem: Problem, best: np.ndarray, number: int, value: float) -> float:
    """A coordinate in its parameter's own units; a formula's coefficient unchanged."""
    x = best.copy()
    x[number] = value
    offset = 0
    for term in problem.terms:
        if number < offset + len(term.labels):
            if term.formula:
                return value
            return float(problem.natural(torch.from_numpy(x))[term.name][number - offset])
        offset += len(term.labels)
    raise AssertionError("a coordinate of no term")
