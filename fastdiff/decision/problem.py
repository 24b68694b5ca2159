"""A fit as a function to minimise: coordinates without bounds -> negative log-likelihood and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.decision.design import Design, Term, make_terms
from fastdiff.decision.likelihood import Outliers, log_missing, log_responses
from fastdiff.decision.moments import ez
from fastdiff.decision.parameters import Parameters
from fastdiff.decision.quadrature import START_NODES, TIME_NODES
from fastdiff.decision.simulate import simulate

# The value of the objective where the likelihood is undefined, from which the line search turns back.
FAILED = 1e300
_SZ_MOST = 0.999  # of the range that fits between the boundaries
_AT_ONCE = 1 << 17  # trials times nodes of quadratures whose gradients are held in memory


class Trials:
    """Responses and, separately, numbers of missing responses by group of equal parameters and deadline."""

    def __init__(self, times: Tensor, upper: Tensor, missing: Tensor, codes: Tensor) -> None:
        self.all_times, self.all_upper, self.missing, self.codes = times, upper, missing, codes
        self.where = torch.nonzero(~missing)[:, 0]
        self.times, self.upper = times[self.where], upper[self.where]

    def __len__(self) -> int:
        return len(self.all_times)


class Problem:
    """The negative log-likelihood of some trials under a design."""

    def __init__(
        self,
        trials: Trials,
        design: Design,
        conditions: tuple[str, ...],
        terms: list[Term],
        outliers: Outliers,
    ) -> None:
        self.trials, self.design, self.conditions = trials, design, conditions
        self.terms, self.outliers = terms, outliers
        self._missing_rows()

    @staticmethod
    def of_design(
        trials: Trials,
        design: Design,
        conditions: tuple[str, ...],
        columns: Mapping[str, Any],
        deadline: float,
    ) -> Problem:
        """deadline: the latest; 0 if there is none."""
        responses = trials.times if len(trials.times) else trials.all_times
        terms = make_terms(design, conditions, trials.codes, columns, responses.min())
        return Problem(trials, design, conditions, terms, design.outliers.of(responses, deadline))

    def of_trials(self, trials: Trials, terms: list[Term]) -> Problem:
        """The same coordinates for other trials; terms: these, of those trials."""
        return Problem(trials, self.design, self.conditions, terms, self.outliers)

    @property
    def labels(self) -> list[str]:
        """A name for each coordinate: a, v[easy], v:frequency."""
        names = []
        for term in self.terms:
            mark = f"{term.name}:{{}}" if term.formula else f"{term.name}[{{}}]"
            names += [mark.format(label) if label else term.name for label in term.labels]
        return names

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Coordinates -> coefficients of each parameter."""
        sizes = [len(term.labels) for term in self.terms]
        return dict(zip((t.name for t in self.terms), x.split(sizes), strict=True))

    def natural(self, x: Tensor) -> dict[str, Tensor]:
        """Coordinates -> each free parameter at its rows, [M]."""
        pieces = self.split(x)
        values = {term.name: term.natural(pieces[term.name]) for term in self.terms}
        if "sz" in values:
            z = values.get("z", torch.as_tensor(self.design.constant("z"), dtype=torch.float64))
            room = 2 * _SZ_MOST * torch.minimum(z, 1 - z).min()
            values["sz"] = values["sz"] * room.clamp_max(1.0)
        return values

    @torch.no_grad()
    def reported(self, x: Tensor) -> dict[str, Tensor]:
        """Coordinates [..., K] -> what a fit reports: each parameter in its own units, a formula's coefficients."""
        plain = [term.name for term in self.terms if not term.formula]

        def values(one: Tensor) -> dict[str, Tensor]:
            natural = self.natural(one)
            return {name: natural[name] for name in plain}

        at_once = 1 + _AT_ONCE // sum(len(term.rows) for term in self.terms)
        found = (
            torch.vmap(values, chunk_size=at_once)(x.reshape(-1, x.shape[-1])) if plain and x.numel() else {}
        )
        shaped = {name: value.view(*x.shape[:-1], -1) for name, value in found.items()}
        pieces = x.split([len(term.labels) for term in self.terms], -1)
        return {t.name: shaped.get(t.name, piece) for t, piece in zip(self.terms, pieces, strict=True)}

    def at(self, natural: dict[str, Tensor], trials: Tensor | slice) -> tuple[Parameters, Tensor]:
        """The model at some trials, in units of the noise, and the share of outliers."""
        index = {term.name: term.index for term in self.terms}
        p: dict[str, Tensor] = {}
        for name in ("v", "a", "z", "t0", "sv", "sz", "st0", "p_outlier"):
            value = natural.get(name)
            if value is None:
                p[name] = torch.tensor(self.design.constant(name), dtype=torch.float64)
            else:
                rows = index[name]
                p[name] = value[0] if rows is None else value[rows[trials]]
        share = p.pop("p_outlier")
        s = self.design.s
        p["z"], p["sz"] = p["z"] * p["a"], p["sz"] * p["a"]
        lengths = {name: p[name] / s for name in ("v", "a", "z", "sv", "sz")} if s != 1 else {}
        return Parameters(**(p | lengths), s=torch.ones((), dtype=torch.float64)), share

    def log_likelihoods(self, natural: dict[str, Tensor], trials: Tensor | None = None) -> Tensor:
        """[N] of responses, or of the responses that are named."""
        where = self.trials.where if trials is None else self.trials.where[trials]
        p, share = self.at(natural, where)
        data = self.trials
        return log_responses(data.all_times[where], data.all_upper[where], p, share, self.outliers)

    def missing(self, natural: dict[str, Tensor]) -> Tensor:
        """Log-likelihood of all missing responses together."""
        if not len(self._late):
            return torch.zeros((), dtype=torch.float64)
        return (self._late_counts * self._log_missing(natural)).sum()

    def _log_missing(self, natural: dict[str, Tensor]) -> Tensor:
        p, share = self.at(natural, self._late)
        return log_missing(self.trials.all_times[self._late], p, share, self.outliers)

    @torch.no_grad()
    def pointwise(self, natural: dict[str, Tensor]) -> Tensor:
        """The log-likelihood of each trial [N], missing responses among them."""
        found, n = torch.empty(len(self.trials), dtype=torch.float64), len(self.trials.where)
        for part in torch.arange(n).split(self._trials_at_once()):
            found[self.trials.where[part]] = self.log_likelihoods(natural, part)
        if len(self._late):
            found[self.trials.missing] = self._log_missing(natural)[self._late_kind]
        return found

    @torch.no_grad()
    def simulate(self, natural: dict[str, Tensor], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Times and choices of an experiment with these parameters, outliers among them; nothing is missing."""
        n = len(self.trials)
        p, share = self.at(natural, torch.arange(n))
        made = simulate(**vars(p), n=n, seed=int(rng.integers(1 << 32)), z_mode="absolute")
        times, choice = made.rt.numpy().copy(), made.choice.numpy().copy()
        out = rng.random(n) < share.numpy()
        scale, count = float(self.outliers.scale or 1.0), int(out.sum())
        times[out] = (
            rng.uniform(0, scale, count) if self.outliers.kind == "uniform" else rng.exponential(scale, count)
        )
        choice[out] = rng.integers(0, 2, count)
        return times, choice

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Log-likelihood in parts, so that many trials fit into memory."""
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        total, n, size = 0.0, len(self.trials.where), self._trials_at_once()
        parts: list[Tensor | None] = [None] if n <= size else list(torch.arange(n).split(size))
        for number, part in enumerate(parts):
            natural = self.natural(leaf)
            if not self.possible(natural):
                return FAILED, np.zeros_like(x)
            value = -self.log_likelihoods(natural, part).sum()
            if number == 0:
                value = value - self.missing(natural)
            value.backward()
            total += float(value.detach())
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        if not (math.isfinite(total) and np.isfinite(gradient).all()):
            return FAILED, np.zeros_like(x)
        return total, gradient

    def _trials_at_once(self) -> int:
        free = {term.name for term in self.terms}
        varies = {n: n in free or self.design.constant(n) > 0 for n in ("sz", "st0")}
        return _AT_ONCE // (START_NODES if varies["sz"] else 1) // (TIME_NODES[6.0] if varies["st0"] else 1)

    def possible(self, natural: dict[str, Tensor]) -> bool:
        """True if every parameter is within its range, which links other than the identity guarantee."""
        with torch.no_grad():
            within = all(
                bool(((natural[t.name] > t.low) & (natural[t.name] < t.high)).all())
                for t in self.terms
                if t.link == "identity" or (t.formula and t.link == "log" and math.isfinite(t.high))
            )
        return within and all(bool(x.isfinite().all()) for x in natural.values())

    def information(self, x: np.ndarray) -> np.ndarray:
        """Second derivatives of the negative log-likelihood [K, K], by differences of the exact gradient."""
        return curvature(self.value_and_gradient, x)

    def start(self) -> np.ndarray:
        """EZ estimates for each condition, kept away from undefined cases and from fast outliers."""
        times, upper, codes = self.trials.times, self.trials.upper, self.trials.codes[self.trials.where]
        found = [
            _ez_of(times[codes == c], upper[codes == c], self.design.s) for c in range(len(self.conditions))
        ]
        drifts, widths = zip(*found, strict=True)
        early = float(torch.quantile(times, 0.02)) if len(times) else 0.1
        begin = {"a": float(np.median(widths)), "z": 0.5, "t0": 0.75 * early, "sv": 0.5 * self.design.s,
                 "sz": 0.25, "st0": 0.25 * early, "p_outlier": 0.05, "v": float(np.mean(drifts))}  # fmt: skip
        x: list[float] = []
        for term in self.terms:
            if term.name == "v" and term.labels == self.conditions and "v" not in self.design.start:
                x += [term.coordinate(d) for d in drifts]
                continue
            value = term.coordinate(self.design.start.get(term.name, begin[term.name]))
            if term.formula is None:
                x += [value] * len(term.labels)
            else:  # the coefficients with which every trial has about this value
                target = torch.full((len(term.rows), 1), value, dtype=torch.float64)
                x += torch.linalg.lstsq(term.rows, target, driver="gelsd").solution[:, 0].tolist()
        return np.array(x)

    def _missing_rows(self) -> None:
        """One trial of each kind of missing response, and how many there are of it."""
        late = torch.nonzero(self.trials.missing)[:, 0]
        index = [t.index[late].double() for t in self.terms if t.index is not None]
        kinds = torch.stack([self.trials.all_times[late], *index], 1)
        _, code, count = torch.unique(kinds, dim=0, return_inverse=True, return_counts=True)
        self._late_kind = code
        first = torch.zeros(len(count), dtype=torch.int64)
        first[code] = torch.arange(len(late))
        self._late, self._late_counts = late[first], count


def curvature(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]], x: np.ndarray
) -> np.ndarray:
    """Second derivatives [K, K] of a function by central differences of its gradient."""
    size = len(x)
    found = np.empty((size, size))
    for i in range(size):
        step = np.zeros(size)
        step[i] = 1e-4 * max(1.0, abs(x[i]))
        ahead, behind = value_and_gradient(x + step)[1], value_and_gradient(x - step)[1]
        found[i] = (ahead - behind) / (2 * step[i])
    return (found + found.T) / 2


def _ez_of(times: Tensor, upper: Tensor, s: float) -> tuple[float, float]:
    n = len(times)
    if n == 0:
        return 0.0, s
    share = (float(upper.double().sum()) + 0.5) / (n + 1)
    share += 0.01 if abs(share - 0.5) < 0.005 else 0.0
    low, high = (float(torch.quantile(times, q)) for q in (0.25, 0.75))
    kept = times[(times >= low - 3 * (high - low)) & (times <= high + 3 * (high - low))]
    spread = float(kept.var()) if len(kept) > 1 else 0.1 * float(times.mean()) ** 2
    v, a, _ = ez(share, float(kept.mean()), max(spread, 1e-6), s)
    return float(v), float(a)
