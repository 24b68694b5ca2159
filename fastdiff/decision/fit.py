"""Maximum likelihood: the parameters under which the observed trials are most probable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.decision.density import log_pdf
from fastdiff.decision.moments import ez
from fastdiff.decision.parameters import check_data
from fastdiff.decision.quadrature import NODES
from fastdiff.errors import FastdiffError

FREE = ("v", "a", "z", "t0", "sv", "sz", "st0")
_AT_ONCE = 1 << 18  # trials times nodes of the quadrature whose gradients are held in memory


@dataclass(frozen=True)
class Fit:
    """What was found. z and sz are fractions of a, t0 is the lower edge; v is one drift for each condition."""

    conditions: tuple[str, ...]
    estimates: dict[str, Any]  # name -> number, v -> list; fixed parameters included
    standard_errors: dict[
        str, Any
    ]  # of the free ones, from the curvature at the maximum; NaN where it has none
    log_likelihood: float
    trials: int
    converged: bool
    message: str  # the optimiser's

    @property
    def free(self) -> int:
        """Number of parameters fitted."""
        return sum(len(e) if isinstance(e, list) else 1 for e in self.standard_errors.values())

    @property
    def aic(self) -> float:
        return 2 * self.free - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        return self.free * math.log(self.trials) - 2 * self.log_likelihood

    def of(self, condition: str) -> dict[str, Any]:
        """The parameters of one condition, as arguments of ``pdf``, ``simulate`` and ``moments``."""
        return {**self.estimates, "v": self.estimates["v"][self.conditions.index(condition)]}

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "aic": self.aic, "bic": self.bic}


def fit(
    rt: Any,
    choice: Any,
    condition: Sequence[Any] | None = None,
    *,
    free: Sequence[str] = ("v", "a", "z", "t0"),
    z: float = 0.5,
    s: float = 1.0,
    sv: float = 0.0,
    sz: float = 0.0,
    st0: float = 0.0,
    progress: Callable[[int, float], None] | None = None,
) -> Fit:
    """Fit the decision model to trials by maximum likelihood.

    Maximises :func:`fastdiff.decision.log_likelihood` over unconstrained coordinates (log a, logit z, logit of
    t0 / min rt, ...) by SciPy's L-BFGS-B with exact gradients, from where the EZ method puts v, a and t0.

    Args:
        rt: [N] seconds.
        choice: [N], 1 upper and 0 lower.
        condition: [N] labels; each has its own drift, all other parameters are shared.
        free: what to fit, of v, a, z, t0, sv, sz, st0; v, a and t0 always are.
        z, sv, sz, st0: the values of those that are not free (z, sz as fractions of a). s is never free: it sets the
            unit of length.
        progress: called after each iteration with its number and the log-likelihood.

    Raises:
        FastdiffError: SciPy missing; no trials, NaN, times not positive; unknown names in free.

    Source: Ratcliff & Tuerlinckx 2002, "Estimating parameters of the diffusion model"; Myung 2003 on the method.
    """
    minimize = _scipy_minimize()
    _check_free(free)
    times, upper = check_data(rt, choice)
    times, upper = times.flatten(), upper.flatten()
    labels, codes = _conditions(condition, len(times))
    problem = _Problem(times, upper, codes, len(labels), tuple(n for n in FREE if n in free), s)
    problem.fixed = {"z": z, "sv": sv, "sz": sz, "st0": st0}

    rounds = 0

    def report(intermediate_result: Any) -> None:
        nonlocal rounds
        rounds += 1
        if progress is not None:
            progress(rounds, -float(intermediate_result.fun))

    found = minimize(
        problem.value_and_gradient, problem.start(), jac=True, method="L-BFGS-B", callback=report,
        options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-5 * len(times)},
    )  # fmt: skip
    natural = problem.natural(torch.from_numpy(found.x))
    estimates = {**problem.fixed, "s": s, **{n: _plain(x) for n, x in natural.items()}}
    return Fit(
        conditions=labels,
        estimates=estimates,
        standard_errors=problem.standard_errors(natural),
        log_likelihood=-float(found.fun),
        trials=len(times),
        converged=bool(found.success),
        message=str(found.message),
    )


class _Problem:
    """The negative log-likelihood over unconstrained coordinates."""

    def __init__(
        self, times: Tensor, upper: Tensor, codes: Tensor, conditions: int, free: tuple[str, ...], s: float
    ) -> None:
        self.times, self.upper, self.codes, self.conditions, self.free, self.s = (
            *(times, upper, codes, conditions, free, s),
        )
        self.fixed: dict[str, float] = {}

    def start(self) -> np.ndarray:
        """EZ's answer for each condition, kept away from where it has none."""
        first = float(self.times.min())
        found = []
        for c in range(self.conditions):
            t, up = self.times[self.codes == c], self.upper[self.codes == c].double()
            n = len(t)
            share = (float(up.sum()) + 0.5) / (n + 1)
            share += 0.01 if abs(share - 0.5) < 0.005 else 0.0
            spread = float(t.var()) if n > 1 else 0.1 * float(t.mean()) ** 2
            found.append([float(x) for x in ez(share, float(t.mean()), max(spread, 1e-6), self.s)])
        drifts, widths, _ = zip(*found, strict=True)
        a = float(np.median(widths))
        begin = {"a": math.log(a), "z": 0.0, "t0": 1.0, "sv": math.log(0.5 * self.s), "sz": -1.0}
        begin["st0"] = math.log(0.3 * first)
        return np.array([*drifts, *(begin[name] for name in self.free if name != "v")])

    def natural(self, x: Tensor) -> dict[str, Tensor]:
        """Coordinates -> parameters: z in (0, 1), t0 in (0, min rt), sz within the boundaries, the others positive."""
        p = {"v": x[: self.conditions]}
        p |= dict(zip([n for n in self.free if n != "v"], x[self.conditions :].unbind(), strict=True))
        p["a"] = p["a"].exp()
        p["t0"] = torch.sigmoid(p["t0"]) * self.times.min()
        if "z" in p:
            p["z"] = torch.sigmoid(p["z"])
        for name in ("sv", "st0"):
            if name in p:
                p[name] = p[name].exp()
        if "sz" in p:
            z = p.get("z", torch.as_tensor(self.fixed["z"], dtype=torch.float64))
            p["sz"] = 1.999 * torch.sigmoid(p["sz"]) * torch.minimum(z, 1 - z)
        return p

    def negative(self, p: dict[str, Tensor], part: slice = slice(None)) -> Tensor:
        values: dict[str, Any] = {**self.fixed, "s": self.s, **p}
        values["v"] = p["v"][self.codes[part]]
        return -log_pdf(self.times[part], self.upper[part], **values).sum()

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """In parts, so that many trials with quadratures fit into memory."""
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        total = 0.0
        for part in self._parts():
            value = self.negative(self.natural(leaf), part)
            value.backward()
            total += float(value.detach())
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        if not (math.isfinite(total) and np.isfinite(gradient).all()):
            return 1e300, np.zeros_like(x)  # the line search turns back
        return total, gradient

    def _parts(self) -> list[slice]:
        nodes = math.prod(
            NODES[n] for n in ("sz", "st0") if n in self.free or self.fixed[n]
        )  # sv has a closed form
        size = max(1, _AT_ONCE // nodes)
        return [slice(i, i + size) for i in range(0, len(self.times), size)]

    def standard_errors(self, p: dict[str, Tensor]) -> dict[str, Any]:
        """Square roots of the inverse information's diagonal, in the parameters' own units."""
        sizes = [x.numel() for x in p.values()]
        flat = torch.cat([x.detach().reshape(-1) for x in p.values()])

        def negative(x: Tensor, part: slice) -> Tensor:
            parts = zip(p.items(), x.split(sizes), strict=True)
            return self.negative({n: piece.reshape(old.shape) for (n, old), piece in parts}, part)

        information = torch.zeros(len(flat), len(flat), dtype=torch.float64)
        for part in self._parts():
            hessian: Any = torch.autograd.functional.hessian(lambda x, part=part: negative(x, part), flat)
            information += hessian
        errors = torch.linalg.pinv(information, hermitian=True).diagonal()
        errors = torch.where(errors > 0, errors, math.nan).sqrt()
        return {
            n: _plain(e.reshape(x.shape)) for (n, x), e in zip(p.items(), errors.split(sizes), strict=True)
        }


def _check_free(free: Sequence[str]) -> None:
    unknown = [name for name in free if name not in FREE]
    missing = [name for name in ("v", "a", "t0") if name not in free]
    if unknown or missing:
        what = f"does not know {unknown[0]!r}" if unknown else f"always fits {missing[0]!r}"
        raise FastdiffError(f"fit {what}; free is made of {', '.join(FREE)}, and has v, a and t0")


def _conditions(condition: Sequence[Any] | None, n: int) -> tuple[tuple[str, ...], Tensor]:
    if condition is None:
        return ("all",), torch.zeros(n, dtype=torch.int64)
    if len(condition) != n:
        raise FastdiffError(f"condition must have one label for each trial: {n}, got {len(condition)}")
    given = [str(c) for c in condition]
    labels = tuple(dict.fromkeys(given))  # in order of appearance
    number = {label: i for i, label in enumerate(labels)}
    return labels, torch.tensor([number[c] for c in given])


def _plain(x: Tensor) -> Any:
    return x.detach().tolist()


def _scipy_minimize() -> Callable[..., Any]:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise FastdiffError("fitting needs SciPy: pip install 'fastdiff[decision]'") from None
    return minimize
