"""The full posterior of one subject or of a group, by NUTS (nutpie), as an InferenceData of ArviZ."""

from __future__ import annotations

import functools
import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from fastdiff.choices import SHARED
from fastdiff.decision.fit import make_problem, minimise
from fastdiff.decision.hierarchical import HierarchicalFit, fit_hierarchical, group_problem
from fastdiff.decision.log_posterior import LogPosterior, Stacked
from fastdiff.decision.problem import Problem, curvature
from fastdiff.errors import FastdiffError

_R_HAT_MOST = 1.01  # Vehtari et al. 2021
_ESS_LEAST = 100  # of each chain, likewise
_LARGEST_DEVIATION = 10.0  # of a coordinate, where the curvature says nothing
_SMALLEST_SPREAD = 0.05  # between subjects, where a group's fit found less
_ROUNDS = 9  # of a group's fit, which need not converge here
_PREDICTED = 100  # simulated experiments
_STATS = {"diverging": "diverging", "energy": "energy", "lp": "logp", "tree_depth": "depth", "n_steps": "n_steps",
          "step_size": "step_size", "acceptance_rate": "mean_tree_accept"}  # ArviZ's names, nutpie's  # fmt: skip


@dataclass(frozen=True)
class Posterior:
    """Draws from the posterior.

    ``data`` is an ``arviz.InferenceData`` with the groups posterior, sample_stats, log_likelihood, posterior_predictive
    and observed_data, which all of ArviZ's functions take. Its variables: v, a, z, ... in their own units (a formula's
    coefficients on the link's scale), with a dimension where there are several; for a group these are the values at its
    mean, NAME_std is the deviation between subjects on the link's scale, and NAME_subject each subject's value.
    """

    data: Any
    subjects: tuple[str, ...]
    links: dict[str, str]
    seconds: float
    problem: Problem = field(repr=False, compare=False)

    @property
    def names(self) -> list[str]:
        """The variables but for those of single subjects."""
        return [str(n) for n in self.data.posterior.data_vars if not str(n).endswith("_subject")]

    def table(self, level: float = 0.95, subjects: bool = False) -> Any:
        """ArviZ's summary, a DataFrame: mean, sd, the ends of the highest density interval, ess, r_hat."""
        return _arviz().summary(
            self.data, var_names=None if subjects else self.names, hdi_prob=level, round_to="none"
        )

    @property
    def divergences(self) -> int:
        """Draws after tuning at which the sampler left the density's bulk."""
        return int(self.data.sample_stats["diverging"].sum())

    @functools.cached_property
    def warnings(self) -> list[str]:
        """What speaks against trusting the draws."""
        table, said = self.table(subjects=True), []
        bad = table.index[~(table["r_hat"] <= _R_HAT_MOST)]
        if len(bad):
            said.append(
                f"r_hat is above {_R_HAT_MOST} for {', '.join(map(str, bad[:5]))}: draw more, or tune longer"
            )
        least, chains = table[["ess_bulk", "ess_tail"]].min(axis=None), self.data.posterior.sizes["chain"]
        if least < _ESS_LEAST * chains:
            said.append(
                f"the smallest effective sample size is {least:.0f}, below {_ESS_LEAST} a chain: draw more"
            )
        if self.divergences:
            said.append(f"{self.divergences} divergences: raise target_accept, or share or fix a parameter")
        return said

    @functools.cached_property
    def loo(self) -> Any:
        """Leave-one-out cross-validation by Pareto-smoothed importance sampling, an ``arviz.ELPDData``."""
        return self._criterion("loo", pointwise=True)

    @functools.cached_property
    def waic(self) -> Any:
        """The widely applicable information criterion, an ``arviz.ELPDData``; ``loo`` is more robust."""
        return self._criterion("waic")

    def _criterion(self, name: str, **options: Any) -> Any:
        if "log_likelihood" not in self.data.groups():
            raise FastdiffError(f"{name} needs the trials' log-likelihoods: sample with log_likelihood=True")
        with warnings.catch_warnings():  # the summary says how many trials are unreliable
            warnings.simplefilter("ignore", UserWarning)
            return getattr(_arviz(), name)(self.data, **options)

    def summary(self) -> str:
        """A table of the posterior, with what is known of the sampling."""
        lines = ["parameter                 mean       sd         95 % interval   ess  r_hat"]
        for name, row in self.table().iterrows():
            lines.append(
                f"{name:<21} {row['mean']:8.4f} {row['sd']:8.4f}  {row.iloc[2]:8.4f} to {row.iloc[3]:8.4f} "
                f"{row['ess_bulk']:5.0f} {row['r_hat']:6.3f}"
            )
        chains, draws = (self.data.posterior.sizes[n] for n in ("chain", "draw"))
        lines.append(f"sampling        {chains} chains of {draws} draws in {self.seconds:.1f} s")
        if "log_likelihood" in self.data.groups():
            found = self.loo
            bad = int((found.pareto_k > 0.7).sum())
            lines.append(f"elpd_loo        {found.elpd_loo:.2f} +- {found.se:.2f}   p_loo {found.p_loo:.1f}"
                         + f"   {bad} trials with Pareto k above 0.7" * bool(bad))  # fmt: skip
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def as_dict(self) -> dict[str, Any]:
        """The summary of all variables and the criteria, for JSON."""
        found = {"parameters": self.table(subjects=True).to_dict(orient="index"), "links": self.links}
        if "log_likelihood" in self.data.groups():
            for name, one in (("loo", self.loo), ("waic", self.waic)):
                found[name] = {"elpd": float(one.iloc[0]), "se": float(one.iloc[1]), "p": float(one.iloc[2])}
        sizes = {f"{n}s": int(self.data.posterior.sizes[n]) for n in ("chain", "draw")}
        ended = {"divergences": self.divergences, "warnings": self.warnings, "seconds": self.seconds}
        return {**found, **sizes, **ended}


def sample_posterior(
    rt: Any,
    choice: Any,
    condition: Sequence[Any] | None = None,
    *,
    subject: Sequence[Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    deadline: Any = None,
    priors: Mapping[str, Distribution] | None = None,
    shared: Sequence[str] = SHARED,
    chains: int = 4,
    draws: int = 500,
    tune: int = 300,
    seed: int = 0,
    target_accept: float = 0.8,
    log_likelihood: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **design: Any,
) -> Posterior:
    """Draw from the posterior of the decision model, of one subject or of a group of subjects.

    The No-U-Turn sampler of nutpie on ``fit``'s coordinates (log a, logit z, ...) with exact gradients, which Laplace's
    approximation of the posterior centres and scales first. In a group each subject's coordinates are normal around the
    group's, x_i ~ N(mu, diag sigma^2), as in ``fit_hierarchical``.

    Args:
        rt, choice, condition, columns, deadline, design: as in :func:`fastdiff.decision.fit`.
        subject: [N] labels; left out, all trials are one subject's.
        priors: name -> distribution of ``torch.distributions``, in place of
            :func:`fastdiff.decision.default_priors`. Names: a parameter ("v"), one of its coordinates ("v[easy]",
            "v:frequency") or NAME_std, the deviation between subjects on the link's scale, which is otherwise
            N+(0, 2) for v and N+(0, 0.5) for logarithms and logits. A parameter's prior is in its own units; a group's
            is of the value at the group's mean. A formula's coefficients are on the link's scale and by default
            N(0, 3) (identity) or N(0, 1) (log, logit) over the largest absolute value of their column.
        shared: parameters that all subjects of a group share, those of HDDM by default.
        chains, draws, tune: draws of each chain that are kept, after ``tune`` that are not.
        seed: random seed; the same draws for the same seed.
        target_accept: acceptance rate that the step size is tuned to; raise it if there are divergences.
        log_likelihood: keep each trial's log-likelihood at each draw, which ``loo`` and ``waic`` need: 8 bytes times
            trials, chains and draws.
        progress: called after each draw with how many are done, and how many there are.

    Raises:
        FastdiffError: as ``fit`` and ``fit_hierarchical``; nutpie or ArviZ missing; a prior that is none or is of no
            free parameter.

    Warns:
        UserWarning: for each of :attr:`Posterior.warnings`: r_hat above 1.01, few effective draws, divergences.

    Source: Hoffman & Gelman 2014, "The No-U-Turn Sampler"; Wiecki, Sofer & Frank 2013 (HDDM) on model and priors;
    Vehtari et al. 2021 on r_hat; Vehtari, Gelman & Gabry 2017 on loo.
    """
    for name, value, least in (("chains", chains, 1), ("draws", draws, 4), ("tune", tune, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise FastdiffError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if not 0 < target_accept < 1:
        raise FastdiffError(f"target_accept must be between 0 and 1, got {target_accept}")
    begin, az = time.perf_counter(), _arviz()
    labels: tuple[str, ...] = ()
    given = {"columns": columns, "deadline": deadline, **design}
    if subject is None:
        density = LogPosterior(make_problem(rt, choice, condition, **given), priors)
        centre, scale = _laplace(density)
    else:
        problem, labels, codes = group_problem(rt, choice, subject, condition, columns, deadline, {**design})
        density = LogPosterior(problem, priors, Stacked.of(problem, codes, len(labels)), tuple(shared))
        group = fit_hierarchical(rt, choice, subject, condition, iterations=_ROUNDS, **given)
        centre, scale = _group_laplace(density, group)
    if density(centre)[0] == -np.inf:
        raise FastdiffError("the likelihood is zero at the start; give start values, or p_outlier above 0")

    def scaled(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density(centre + scale @ u)
        return value, scale.T @ gradient

    settings = {"chains": chains, "draws": draws, "tune": tune, "seed": seed, "target_accept": target_accept}
    u, stats = _nuts(scaled, len(centre), progress, **settings)
    theta = torch.from_numpy(centre + u @ scale.T)
    posterior, dims = _variables(density, theta)
    trials = density.problem.trials
    observed = {"rt": np.where(trials.missing, np.nan, trials.all_times),
                "choice": np.where(trials.missing, -1, trials.all_upper)}  # fmt: skip
    groups = {"posterior": posterior, "sample_stats": stats, "observed_data": observed,
              "posterior_predictive": _predicted(density, theta, deadline, seed)}  # fmt: skip
    if log_likelihood:
        model, at = density.likelihood, density.coordinates(theta)
        values = [[model.pointwise(model.natural(x)).numpy() for x in chain] for chain in at]
        groups["log_likelihood"] = {"response": np.array(values)}
    coords = {"trial": np.arange(len(trials)), "condition": density.problem.conditions, "subject": labels}
    coords |= {f"{t.name}_term": t.labels for t in density.problem.terms if t.formula}
    dims |= {name: ["trial"] for name in ("rt", "choice", "response")}
    with warnings.catch_warnings():  # there are fewer predicted experiments than draws
        warnings.simplefilter("ignore", UserWarning)
        data = az.from_dict(**groups, coords={n: list(c) for n, c in coords.items()}, dims=dims,
                            attrs={"inference_library": "nutpie", **settings})  # fmt: skip
    links = {term.name: term.link for term in density.problem.terms}
    found = Posterior(data, labels, links, time.perf_counter() - begin, density.problem)
    for text in found.warnings:
        warnings.warn(text, UserWarning, stacklevel=2)
    return found


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import arviz  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FastdiffError(
            "full posteriors need ArviZ and nutpie: pip install 'fastdiff[posterior]'"
        ) from None
    return arviz


def _nuts(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]], size: int, progress: Callable[[int, int], None] | None,
    *, chains: int, draws: int, tune: int, seed: int, target_accept: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """Draws [chains, draws, size] from a log-density that is about normal, and statistics of the sampler."""
    try:
        import nutpie  # pyright: ignore[reportMissingImports]
        from nutpie.compiled_pyfunc import from_pyfunc  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FastdiffError("full posteriors need nutpie: pip install 'fastdiff[posterior]'") from None
    failed: list[Exception] = []
    done, total = itertools.count(1), chains * (draws + tune)

    def log_density(u: np.ndarray) -> tuple[float, np.ndarray]:
        if not failed:
            try:
                return function(u)
            except Exception as error:  # it must not reach the sampler's threads
                failed.append(error)
        return -float("inf"), np.zeros(size)

    def expand(u: np.ndarray) -> dict[str, np.ndarray]:
        if progress is not None:
            progress(next(done), total)
        return {"u": u}

    model = from_pyfunc(
        size, lambda: log_density, lambda *_: expand, [np.dtype("float64")], [(size,)], ["u"],
        make_initial_point_fn=lambda seed: np.random.default_rng(seed).normal(size=size),
    )  # fmt: skip
    trace: Any = None
    sample: Any = nutpie.sample  # whose overloads do not know models made of functions
    try:
        trace = sample(
            model, chains=chains, draws=draws, tune=tune, seed=seed, target_accept=target_accept, save_warmup=False,
            progress_bar=False,
        )  # fmt: skip
    except RuntimeError:
        if not failed:
            raise
    if failed:
        raise failed[0]
    stats = {name: trace.sample_stats[theirs].values for name, theirs in _STATS.items()}
    return trace.posterior["u"].values, stats


def _laplace(density: LogPosterior) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of one subject's posterior, and a matrix that makes independent normal numbers into its draws."""
    problem = density.problem
    best = minimise(density.negative, problem.start(), len(problem.trials)).x
    return best, _root(curvature(density.negative, best), _LARGEST_DEVIATION**-2)


def _root(information: np.ndarray, least: Any) -> np.ndarray:
    """A square root of the inverse; eigenvalues below ``least`` are lifted to it."""
    values, vectors = np.linalg.eigh(np.nan_to_num(information))
    return vectors / np.sqrt(np.maximum(values, least))


def _group_laplace(density: LogPosterior, group: HierarchicalFit) -> tuple[np.ndarray, np.ndarray]:
    """The same for a group, from its fit: the mean, log sigma and each subject are independent of one another here.

    It also sets the density's centring to the share of a subject's precision that its data have.
    """
    own, count, k = density.own.numpy(), len(group.subjects), len(group.names)
    h = len(own)
    sigma = np.maximum(group.deviation[own], _SMALLEST_SPREAD)
    curvatures = np.linalg.inv(group.covariances) - np.diag(group.deviation**-2)
    precision = np.maximum(np.diagonal(curvatures, axis1=1, axis2=2).mean(0), _LARGEST_DEVIATION**-2)
    centring = precision[own] / (precision[own] + sigma**-2)
    density.centring, stretch = torch.from_numpy(centring), sigma ** (1 - centring)
    scale = np.zeros((density.size, density.size))
    variances = np.empty((count, h))
    for i, information in enumerate(curvatures):
        root = _root(information[np.ix_(own, own)] + np.diag(sigma**-2), sigma.max() ** -2)
        part = slice(k + h + i * h, k + h + (i + 1) * h)
        scale[part, part], variances[i] = root / stretch[:, None], (root**2).sum(1)
    mean = (count * precision) ** -0.5
    mean[own] = np.sqrt((sigma**2 + variances.mean(0)) / count)
    spread = np.minimum(1.0, (1 + variances.mean(0) / sigma**2) / np.sqrt(2 * count))
    scale[range(k + h), range(k + h)] = np.concatenate([mean, spread])
    middle = group.mean[own]
    subjects = centring * middle + (group.coordinates[:, own] - middle) / stretch
    return np.concatenate([group.mean, np.log(sigma), subjects.ravel()]), scale


def _variables(density: LogPosterior, theta: Tensor) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Draws [chains, draws, ...] in the parameters' own units, and the names of the dimensions after the second."""
    problem = density.problem
    mu, log_sigma, x = density.split(theta)
    mean, each = problem.reported(mu), problem.reported(x)
    found, dims = {}, {}
    deviations = dict(zip(density.own_names, log_sigma.exp().split(density.own_sizes, -1), strict=True))
    for term in problem.terms:
        last = [] if term.labels == ("",) else [f"{term.name}_term" if term.formula else "condition"]
        parts = {term.name: (mean[term.name], last)}
        if term.name in deviations:
            parts[f"{term.name}_std"] = deviations[term.name], last
            parts[f"{term.name}_subject"] = each[term.name], ["subject", *last]
        for name, (value, names) in parts.items():
            found[name], dims[name] = (value if last else value[..., 0]).numpy(), names
    return found, dims


def _predicted(density: LogPosterior, theta: Tensor, deadline: Any, seed: int) -> dict[str, np.ndarray]:
    """Simulated experiments at some of the draws, [chains, some, trials]."""
    chains, draws = theta.shape[:2]
    some = np.unique(np.linspace(0, draws - 1, -(-_PREDICTED // chains)).astype(int))
    model, rng = density.likelihood, np.random.default_rng(seed)
    limit = np.inf if deadline is None else np.asarray(deadline, dtype=float)
    rows = []
    for x in density.coordinates(theta)[:, some].flatten(0, 1):
        times, choice = model.simulate(model.natural(x), rng)
        late = times > limit
        rows.append((np.where(late, np.nan, times), np.where(late, -1, choice)))
    times, choices = (np.array(part).reshape(chains, len(some), -1) for part in zip(*rows, strict=True))
    return {"rt": times, "choice": choices}
