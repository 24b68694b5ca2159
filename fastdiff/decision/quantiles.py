"""Distances between the observed and the expected numbers of responses between quantiles of the response time."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastdiff.decision.density import cdf
from fastdiff.decision.problem import FAILED, Problem
from fastdiff.errors import FastdiffError

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_FEWEST = 10  # responses that have quantiles; fewer make one cell


class QuantileDistance:
    r"""Chi-square and G-square statistic of a problem, with O observed and E expected responses in each cell:

    .. math::
        \chi^2 = \sum (O - E)^2 / E, \qquad G^2 = 2 \sum O \log (O / E)

    The cells of a condition are the times between the five quantiles of either response, and no response by the
    deadline. Expected numbers mix in the outliers.

    Raises:
        FastdiffError: a formula that gives the trials of one condition different parameters.

    Source: Ratcliff & Smith 2004, "A comparison of sequential sampling models for two-choice reaction time", on
    G-square; Ratcliff & Tuerlinckx 2002 on chi-square and the cells.
    """

    def __init__(self, problem: Problem, kind: Literal["chisquare", "gsquare"]) -> None:
        self.problem, self.kind = problem, kind
        self._first: list[int] = []  # a trial of each condition
        self._edges: list[list[Tensor]] = []  # of each condition and response
        self._observed: list[Tensor] = []
        trials = problem.trials
        for code, label in enumerate(problem.conditions):
            here = trials.codes == code
            for term in problem.terms:
                if term.index is not None and len(torch.unique(term.index[here])) > 1:
                    raise FastdiffError(
                        f"{kind} needs trials of equal parameters in a condition; {term.name} differs within {label!r}"
                    )
            self._first.append(int(torch.nonzero(here)[0, 0]))
            edges, counts = [], []
            for up in (False, True):
                times = trials.all_times[here & ~trials.missing & (trials.all_upper == up)]
                few = len(times) < _FEWEST
                cuts = (
                    times.new_empty(0)
                    if few
                    else torch.quantile(times, torch.tensor(QUANTILES, dtype=times.dtype))
                )
                edges.append(cuts)
                counts.append(torch.bincount(torch.bucketize(times, cuts), minlength=len(cuts) + 1))
            late = here & trials.missing
            self._deadline = (
                float(trials.all_times[trials.missing].max()) if bool(trials.missing.any()) else None
            )
            self._edges.append(edges)
            self._observed.append(torch.cat([*counts, late.sum()[None]]).double())

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        natural = self.problem.natural(leaf)
        if not self.problem.possible(natural):
            return FAILED, np.zeros_like(x)
        value = torch.zeros((), dtype=torch.float64)
        for first, edges, observed in zip(self._first, self._edges, self._observed, strict=True):
            expected = self._shares(natural, first, edges).clamp_min(1e-10) * observed.sum()
            if self.kind == "chisquare":
                value = (
                    value + ((observed - expected) ** 2 / expected)[(observed > 0) | (expected > 1e-6)].sum()
                )
            else:
                some = observed > 0
                value = value + 2 * (observed[some] * (observed[some] / expected[some]).log()).sum()
        value.backward()
        assert leaf.grad is not None
        if not (torch.isfinite(value) and leaf.grad.isfinite().all()):
            return FAILED, np.zeros_like(x)
        return float(value.detach()), leaf.grad.numpy()

    def _shares(self, natural: dict[str, Tensor], first: int, edges: list[Tensor]) -> Tensor:
        """Expected shares of the cells: lower responses, upper ones, none."""
        p, outlier = self.problem.at(natural, torch.tensor([first]))
        one = {n: x[0] if x.dim() else x for n, x in vars(p).items()}
        outlier = outlier[0] if outlier.dim() else outlier
        end = torch.tensor([1e4 if self._deadline is None else self._deadline], dtype=torch.float64)
        shares = []
        for up, cuts in enumerate(edges):
            at = torch.cat([cuts, end])
            model = cdf(at, up, **one, z_mode="absolute")
            early = (1 - self.problem.outliers.survival(at)) / 2
            total = (1 - outlier) * model + outlier * early
            shares.append(torch.diff(total, prepend=total.new_zeros(1)))
        both = torch.cat(shares)
        return torch.cat([both, (1 - both.sum()).clamp_min(0)[None]])
