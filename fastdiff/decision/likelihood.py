"""The likelihood of an experiment: responses, outliers among them, and responses missing at a deadline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff.decision.density import log_density, log_survival
from fastdiff.decision.parameters import Parameters, as_tensor, check_data, is_upper, parameters
from fastdiff.errors import FastdiffError

OUTLIER_RANGE = 5.0  # seconds, unless the data or the deadline go beyond


@dataclass(frozen=True)
class Outliers:
    """Distribution of the response times of outliers, which do not come from the model; both responses are as likely.

    kind: "uniform" between 0 and scale seconds, or "exponential" with mean scale. scale: by default uniform outliers
    reach to 5 s, the deadline or the longest response, whichever is longest, and exponential ones have the responses'
    mean.

    Source: Ratcliff & Tuerlinckx 2002 on contaminants; the default of HDDM and HSSM is 5 % of uniform ones.
    """

    kind: Literal["uniform", "exponential"] = "uniform"
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "exponential"):
            raise FastdiffError(f"outliers must be 'uniform' or 'exponential', got {self.kind!r}")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise FastdiffError(f"the outliers' scale must be a positive number of seconds, got {self.scale}")

    def of(self, times: Tensor, deadline: float = 0.0) -> Outliers:
        """The distribution with the scale that follows from these responses."""
        if self.scale is not None:
            return self
        if self.kind == "exponential":
            return Outliers(self.kind, float(times.mean()))
        return Outliers(self.kind, max(OUTLIER_RANGE, deadline, float(times.max())))

    def log_density(self, times: Tensor) -> Tensor:
        """Logarithm of the joint density of time and response."""
        assert self.scale is not None
        if self.kind == "exponential":
            return -times / self.scale - math.log(2 * self.scale)
        return torch.full_like(times, -math.log(2 * self.scale)).masked_fill(times > self.scale, -math.inf)

    def survival(self, times: Tensor) -> Tensor:
        """P(time > times)."""
        assert self.scale is not None
        return (
            torch.exp(-times / self.scale)
            if self.kind == "exponential"
            else (1 - times / self.scale).clamp_min(0)
        )


def log_likelihood(
    rt: Any,
    choice: Any,
    *model: Any,
    p_outlier: Any = 0.0,
    outliers: Outliers | None = None,
    deadline: Any = None,
    **named: Any,
) -> Tensor:
    r"""Log-likelihood of the observed trials: a scalar, differentiable in the parameters.

    A response contributes log((1 - p) f(rt, choice) + p u(rt) / 2) with the model's density f and the outliers' u; a
    response missing at the deadline D (choice -1) contributes log((1 - p) P(rt > D) + p U(rt > D)).

    Args:
        rt, choice: seconds and 1, 0 or, with a deadline, -1 (rt is then ignored), of one shape.
        model, named: as in :func:`fastdiff.decision.parameters`.
        p_outlier: share of outliers, 0 to 1; with any, the likelihood is finite also below t0.
        outliers: an :class:`Outliers`.
        deadline: seconds after which a response counts as missing, for all trials or one for each.

    Raises:
        FastdiffError: as log_pdf; no trials, times not positive or beyond the deadline, shapes that differ.
    """
    times, upper, missing = check_trials(rt, choice, deadline)
    share = as_tensor("p_outlier", p_outlier)
    if not bool(((share >= 0) & (share < 1)).all()):
        raise FastdiffError(f"p_outlier must be at least 0 and below 1, got {float(share.flatten()[0]):g}")
    limit = torch.zeros(()) if deadline is None else as_tensor("deadline", deadline)
    mixed = (outliers or Outliers()).of(
        times[~missing] if bool((~missing).any()) else limit, float(limit.max())
    )
    p = parameters(*model, **named).in_noise_units()
    total = torch.zeros((), dtype=torch.float64)
    for here, late in ((~missing, False), (missing, True)):
        if bool(here.any()):
            some, part_share = _of_trials(p, here), share.expand(here.shape)[here] if share.dim() else share
            if late:
                values = log_missing(limit.expand(here.shape)[here], some, part_share, mixed)
            else:
                values = log_responses(times[here], upper[here], some, part_share, mixed)
            total = total + values.sum()
    return total


def log_responses(times: Tensor, upper: Tensor, p: Parameters, share: Tensor, outliers: Outliers) -> Tensor:
    """Each response's log-likelihood; p in units of the noise, share of outliers."""
    values = log_density(times, upper, p)
    if not (share.requires_grad or bool(share.any())):
        return values
    return torch.logaddexp(values + torch.log1p(-share), outliers.log_density(times) + share.log())


def log_missing(deadline: Tensor, p: Parameters, share: Tensor, outliers: Outliers) -> Tensor:
    """The log-likelihood of no response by each deadline."""
    values = log_survival(deadline, p)
    if not (share.requires_grad or bool(share.any())):
        return values
    late = outliers.survival(deadline).clamp_min(1e-300).log()
    return torch.logaddexp(values + torch.log1p(-share), late + share.log())


def check_trials(rt: Any, choice: Any, deadline: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """Times, true for the upper boundary, true for a missing response; the times of missing ones are the deadline's.

    Raises:
        FastdiffError: as :func:`check_data`; a missing response without a deadline; a response after it.
    """
    if deadline is None:
        times, upper = check_data(rt, choice)
        return times, upper, torch.zeros_like(upper)
    limit, chosen = as_tensor("deadline", deadline), as_tensor("choice", choice)
    if not bool((limit > 0).all()):
        raise FastdiffError(f"deadline must be a positive number of seconds, got {float(limit.min()):g}")
    missing = chosen == -1
    given = torch.as_tensor(rt, dtype=torch.float64)
    if given.shape != chosen.shape:
        raise FastdiffError(
            f"rt and choice must have one shape, got {list(given.shape)} and {list(chosen.shape)}"
        )
    limit = limit.expand(chosen.shape)
    times, _ = check_data(torch.where(missing, limit, given), torch.where(missing, 0.0, chosen))
    late = times > limit
    if bool(late.any()):
        raise FastdiffError(
            f"a response came {float(times[late][0]):g} s after the stimulus, beyond the deadline of "
            f"{float(limit[late][0]):g} s; give it choice -1 or a later deadline"
        )
    return times, is_upper(torch.where(missing, 0.0, chosen)), missing


def _of_trials(p: Parameters, here: Tensor) -> Parameters:
    """Each parameter at some of the trials; a single value for all stays single."""
    return Parameters(**{n: x.expand(here.shape)[here] if x.dim() else x for n, x in vars(p).items()})
