"""Numbers from NumPy and PyTorch, wherever a number is taken."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """A scalar of NumPy or PyTorch (0 dimensions) as Python's number, also inside a tuple or list, which comes out as a
    tuple; anything else as it is.
    """
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
