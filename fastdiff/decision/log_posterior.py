"""The logarithm of the posterior density, with its gradient, of one subject or of a group; and the priors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Distribution,
    Gamma,
    HalfNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
)

from fastdiff.choices import SHARED
from fastdiff.decision.design import NAMES, Term
from fastdiff.decision.problem import FAILED, Problem
from fastdiff.errors import FastdiffError

_SMALL = {"validate_args": False}


def default_priors(s: float = 1.0) -> dict[str, Distribution]:
    """HDDM's informative priors, but for v's mean, which is 0 here and 2 there: responses may be coded either way.

    v ~ N(0, 3), a ~ Gamma(mean 1.5, deviation 0.75), logit z ~ N(0, 0.5), t0 ~ Gamma(mean 0.4, deviation 0.2),
    sv ~ N+(0, 2), sz ~ Beta(1, 3), st0 ~ N+(0, 0.3), p_outlier ~ Beta(1, 15), where the second number of a normal
    distribution is its deviation; lengths are in units of the noise s. Bounds truncate them.

    Source: Wiecki, Sofer & Frank 2013, "HDDM: Hierarchical Bayesian estimation of the drift-diffusion model in Python",
    figure 1 and hddm_info.py of HDDM 0.9; after the survey of Matzke & Wagenmakers 2009.
    """

    def number(x: float) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)

    return {
        "v": Normal(number(0), number(3 * s), **_SMALL),
        "a": Gamma(number(4), number(4 / (1.5 * s)), **_SMALL),
        "z": TransformedDistribution(
            Normal(number(0), number(0.5), **_SMALL), [SigmoidTransform()], **_SMALL
        ),
        "t0": Gamma(number(4), number(10), **_SMALL),
        "sv": HalfNormal(number(2 * s), **_SMALL),
        "sz": Beta(number(1), number(3), **_SMALL),
        "st0": HalfNormal(number(0.3), **_SMALL),
        "p_outlier": Beta(number(1), number(15), **_SMALL),
    }


class Stacked(Problem):
    """All subjects' trials at once: coordinates [S K], where each subject has its own K."""

    @staticmethod
    def of(whole: Problem, codes: Tensor, subjects: int) -> Stacked:
        """whole: the same trials as if of one subject; codes: [N] each trial's subject."""
        terms = [
            replace(t, index=codes * len(t.rows) + (0 if t.index is None else t.index)) for t in whole.terms
        ]
        stacked = Stacked(whole.trials, whole.design, whole.conditions, terms, whole.outliers)
        stacked.whole, stacked.subjects = whole, subjects
        return stacked

    whole: Problem
    subjects: int

    def natural(self, x: Tensor) -> dict[str, Tensor]:
        values = torch.vmap(self.whole.natural)(x.view(self.subjects, -1))
        return {name: value.flatten() for name, value in values.items()}


class LogPosterior:
    r"""Log-density of all unknowns, up to a constant.

    One subject: the coordinates x [K] that ``fit`` has. A group: its mean mu [K], log sigma [H] and the subjects' x
    [S, H], in this order, of the H coordinates that subjects do not share:

    .. math:: \sum_i \big[ \ell_i(x_i) + \log N(x_i \mid \mu, \sigma) \big] + \log p(\mu) + \log p(\sigma) + \log \sigma

    In place of x_i stands y_i, x_i = mu + sigma^(1 - c) (y_i - c mu): with c = 1 x_i itself, with c = 0 its
    standardised distance from the mean, in between what suits data that determine it in part (``centring``, [H]).
    Source: Gorinova, Moore & Hoffman 2020, "Automatic reparameterisation of probabilistic programs".
    """

    def __init__(
        self,
        problem: Problem,
        priors: Mapping[str, Distribution] | None = None,
        stacked: Stacked | None = None,
        shared: tuple[str, ...] = SHARED,
    ) -> None:
        self.problem, self.stacked = problem, stacked
        self.subjects = stacked.subjects if stacked else 0
        names = [term.name for term in problem.terms for _ in term.labels]
        self.own = torch.tensor(
            [i for i, n in enumerate(names) if self.subjects and n not in shared], dtype=torch.long
        )
        self.centring = torch.ones(len(self.own), dtype=torch.float64)
        own_terms = [t for t in problem.terms if t.name not in shared] if self.subjects else []
        for name in shared:
            if name not in NAMES:
                raise FastdiffError(f"shared does not know {name!r}; parameters are {', '.join(NAMES)}")
        if self.subjects and not own_terms:
            raise FastdiffError("all free parameters are shared by the subjects; leave out subject")
        given = {**(priors or {})}
        allowed = {*problem.labels, *names, *(f"{t.name}_std" for t in own_terms)}
        for name, prior in given.items():
            if name not in allowed:
                raise FastdiffError(
                    f"no free parameter {name!r} for a prior; there are: {', '.join(sorted(allowed))}"
                )
            if not isinstance(prior, Distribution):
                raise FastdiffError(
                    f"the prior of {name} must be a distribution of torch.distributions, got {prior!r}"
                )
        self._terms = [(t, _term_priors(problem, t, given)) for t in problem.terms]
        self.own_names = [term.name for term in own_terms]
        self.own_sizes = [len(term.labels) for term in own_terms]
        self._spreads = [given.get(f"{t.name}_std") or _spread(t, problem.design.s) for t in own_terms]

    @property
    def likelihood(self) -> Problem:
        """The problem whose coordinates ``coordinates`` gives."""
        return self.stacked or self.problem

    def coordinates(self, theta: Tensor) -> Tensor:
        """theta [..., size] -> the likelihood's coordinates [..., K] or [..., S K]."""
        mu, _, x = self.split(theta)
        return x.flatten(-2) if self.subjects else mu

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return len(self.problem.labels) + len(self.own) * (1 + self.subjects)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta [..., size] -> mu [..., K], log sigma [..., H], all coordinates of each subject [..., S, K]."""
        k, h, s = len(self.problem.labels), len(self.own), self.subjects
        mu, log_sigma, x = theta.split([k, h, s * h], -1)
        whole = mu.unsqueeze(-2).expand(*mu.shape[:-1], s, k).clone()
        if s:
            middle, c = mu[..., self.own].unsqueeze(-2), self.centring
            stretch = ((1 - c) * log_sigma).exp().unsqueeze(-2)
            whole[..., self.own] = middle + stretch * (x.unflatten(-1, (s, h)) - c * middle)
        return mu, log_sigma, whole

    def log_prior(self, theta: Tensor) -> Tensor:
        """All but the likelihood."""
        mu, log_sigma, x = self.split(theta)
        total = torch.zeros((), dtype=torch.float64)
        for (term, priors), part in zip(
            self._terms, mu.split([len(t.labels) for t, _ in self._terms]), strict=True
        ):
            value = part if term.formula else term.natural(part)
            for where, prior in priors:
                total = total + _log_prob(prior, value[where])
            total = total if term.formula else total + term.log_slope(part).sum()
        if self.subjects:
            sigma = log_sigma.exp()
            for prior, part in zip(self._spreads, sigma.split(self.own_sizes), strict=True):
                total = total + _log_prob(prior, part)
            off = (x[:, self.own] - mu[self.own]) / sigma
            total = total - 0.5 * (off * off).sum() + ((1 - self.subjects * self.centring) * log_sigma).sum()
        return total

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The log-density and its gradient; minus infinity and zeros where it is not defined."""
        leaf = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        prior = self.log_prior(leaf)
        known = float(prior.detach())
        at = self.coordinates(leaf)
        value, slope = self.likelihood.value_and_gradient(at.detach().numpy())
        if value >= FAILED or not math.isfinite(known):
            return -math.inf, np.zeros_like(theta)
        (gradient,) = torch.autograd.grad(prior - (torch.from_numpy(slope) * at).sum(), leaf)
        found = gradient.numpy()
        return (known - value, found) if np.isfinite(found).all() else (-math.inf, np.zeros_like(theta))

    def negative(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """What a minimiser takes."""
        value, gradient = self(theta)
        return (FAILED, gradient) if value == -math.inf else (-value, -gradient)


def _log_prob(prior: Any, value: Tensor) -> Tensor:
    try:
        return prior.log_prob(value).sum()
    except ValueError:  # outside the support of a prior that checks
        return torch.tensor(-math.inf, dtype=torch.float64)


def _term_priors(
    problem: Problem, term: Term, given: Mapping[str, Distribution]
) -> list[tuple[list[int], Any]]:
    """Pairs of coordinates and their prior: by a coordinate's name, by the parameter's, or the default."""
    mark = f"{term.name}:{{}}" if term.formula else f"{term.name}[{{}}]"
    single = {i: given[n] for i, n in enumerate(map(mark.format, term.labels)) if n in given}
    rest = [i for i in range(len(term.labels)) if i not in single]
    prior = given.get(term.name)
    if prior is None and term.formula:
        scale = (
            3.0 * (problem.design.s if term.name in ("v", "a", "sv") else 1.0)
            if term.link == "identity"
            else 1.0
        )
        largest = term.rows.abs().amax(0)[rest].clamp_min(1e-12)
        prior = Normal(torch.zeros_like(largest), scale / largest, **_SMALL)
    elif prior is None:
        prior = default_priors(problem.design.s)[term.name]
    return [*([(rest, prior)] if rest else []), *(([i], p) for i, p in single.items())]


def _spread(term: Term, s: float) -> Distribution:
    """Prior of the deviation between subjects: HDDM's of v, and on the scale of a logarithm or logit N+(0, 0.5)."""
    scale = (2.0 * s if term.name in ("v", "a", "sv") else 0.5) if term.link == "identity" else 0.5
    return HalfNormal(torch.tensor(scale, dtype=torch.float64), **_SMALL)
