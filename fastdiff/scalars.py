"""Numbers as users have them: Python's, NumPy's, and tensors and arrays of one element without a dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def number(value: Any) -> Any:
    """A NumPy number, or a tensor or array of no dimension, as Python's number; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def plain(value: Any) -> Any:
    """:func:`number`, also inside a tuple or list, which comes out as a tuple."""
    return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else number(value)


def whole(value: Any) -> Any:
    """:func:`number`; a whole one of a floating-point type, as array arithmetic leaves counts, as an int.

    Python's own 4.0 stays what it is: who writes that may mean something else.
    """
    if type(value) is float:
        return value
    value = number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_finite(value: Any) -> bool:
    """Whether this is a number, and a finite one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def wholes(values: Any) -> Any:
    """A shape as a tuple of :func:`whole` numbers; anything else as it is."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return (
        tuple(map(whole, values)) if isinstance(values, Sequence) and not isinstance(values, str) else values
    )
