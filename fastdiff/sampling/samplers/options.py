"""What the rows of a sampler depend on besides the levels, and the check of what a user gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdiff.choices import Spacing
from fastdiff.diffusion.config import Variance
from fastdiff.errors import FastdiffError
from fastdiff.sampling.levels import Levels
from fastdiff.sampling.plan import Row
from fastdiff.scalars import is_finite, number, whole

Restarts = tuple[tuple[float, float, int, int], ...]


@dataclass(frozen=True)
class Options:
    """Each option, by default with no effect; :class:`fastdiff.sampling.api.Sampler` explains them."""

    variance: Variance = "fixed_small"
    sigma_min: float = 0.0  # of the process, where a consistency model returns its input
    eta: float = 0.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    order: int = 1
    restarts: Restarts = ()
    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True)
class Method:
    """A sampler: its title, its rows, its best spacing, and the options that it has, with their defaults."""

    title: str
    rows: Callable[[Levels, Options], list[Row]]
    spacing: Spacing
    takes: Mapping[str, Any] = field(default_factory=dict)
    orders: int = 1  # the highest order that there is
    first_order: int = 1  # the lowest


def checked(
    name: str, methods: Mapping[Any, Method], given: Mapping[str, Any], fixed: Mapping[str, Any]
) -> Options:
    """The options of sampler ``name``: those given (None: not given) and otherwise its own.

    Raises:
        FastdiffError: an option that the sampler does not have, or a value out of its range.
    """
    method, values = methods[name], {}
    for option, value in given.items():
        if value is None:
            continue
        if option not in method.takes:
            # 0 asks for what such a sampler does anyway.
            if option in ("eta", "s_churn") and value == 0:
                continue
            having = [other for other, m in methods.items() if option in m.takes]
            raise FastdiffError(f"sampler {name!r} has no {option}; {_in_words(having)}")
        values[option] = _CHECKS[option](value, method)
    options = Options(**{**method.takes, **fixed, **values})
    if options.s_tmin > options.s_tmax:
        raise FastdiffError(f"s_tmin must not be above s_tmax, got {options.s_tmin:g} and {options.s_tmax:g}")
    if name == "dpm_adaptive" and not options.atol:
        raise FastdiffError("atol must be above 0: where the state is 0 there is no relative error")
    return options


def _in_words(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last} have" if first else f"only {last!r} has"


def _eta(value: Any, method: Method) -> float:
    value = number(value)
    if not is_finite(value) or not 0 <= value <= 1:
        raise FastdiffError(f"eta must be between 0 (deterministic) and 1 (ancestral), got {value!r}")
    return value


def _at_least_0(name: str, infinite: bool = False) -> Callable[[Any, Method], float]:
    def check(value: Any, method: Method) -> float:
        value = number(value)
        if not (is_finite(value) or (infinite and value == math.inf)) or value < 0:
            raise FastdiffError(f"{name} must be a number of at least 0, got {value!r}")
        return float(value)

    return check


def _order(value: Any, method: Method) -> int:
    value = whole(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not method.first_order <= value <= method.orders
    ):
        raise FastdiffError(
            f"the order of {method.title} must be a whole number from {method.first_order} to {method.orders}, "
            f"got {value!r}"
        )
    return value


def _restarts(value: Any, method: Method) -> Restarts:
    accepted = "restarts must be rows (sigma_min, sigma_max, times, steps) such as (0.1, 2.0, 1, 9)"
    try:
        rows = tuple(
            (float(low), float(high), whole(times), whole(steps)) for low, high, times, steps in value
        )
    except (TypeError, ValueError):
        raise FastdiffError(f"{accepted}, got {value!r}") from None
    for low, high, times, steps in rows:
        if not 0 < low < high < math.inf:
            raise FastdiffError(f"{accepted}, with sigma_min below sigma_max; got {low:g} and {high:g}")
        if not all(isinstance(n, int) and n >= 1 for n in (times, steps)):
            raise FastdiffError(f"{accepted}, with whole numbers of at least 1; got {times!r} and {steps!r}")
    return rows


_CHECKS: dict[str, Callable[[Any, Method], Any]] = {
    "eta": _eta,
    "s_churn": _at_least_0("s_churn"),
    "s_tmin": _at_least_0("s_tmin"),
    "s_tmax": _at_least_0("s_tmax", infinite=True),
    "s_noise": _at_least_0("s_noise"),
    "order": _order,
    "restarts": _restarts,
    "rtol": _at_least_0("rtol"),
    "atol": _at_least_0("atol"),
}
OPTIONS = tuple(_CHECKS)
