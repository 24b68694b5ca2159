"""Conversion of users' numbers: Python's, NumPy's, and tensors and arrays without a dimension; durations in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def number(value: Any) -> Any:
    """A NumPy number, or a tensor or array without a dimension, as a Python number; anything else unchanged."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def plain(value: Any) -> Any:
    """:func:`number`, also inside a tuple or list, which is returned as a tuple."""
    return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else number(value)


def whole(value: Any) -> Any:
    """:func:`number`; an array's whole number of a floating-point type becomes an int, as counts from array arithmetic.

    Python's own 4.0 stays a float, because it may not be meant as a count.
    """
    if type(value) is float:
        return value
    value = number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_finite(value: Any) -> bool:
    """True if this is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def wholes(values: Any) -> Any:
    """A shape as a tuple of :func:`whole` numbers; anything else unchanged."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return (
        tuple(map(whole, values)) if isinstance(values, Sequence) and not isinstance(values, str) else values
    )


def duration(seconds: float) -> str:
    """Two digits and a unit: "35 ms", "1.8 s", "2.4 min", "10 h", "12 days"."""
    units = (("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0))
    unit, length = next((u for u in units if seconds < 99.5 * u[1]), ("days", 86400.0))
    return f"{seconds / length:.{0 if seconds >= 9.95 * length else 1}f} {unit}"
