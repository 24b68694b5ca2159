"""Shared by all plots: matplotlib, if it is installed, two colours, and a style."""

from __future__ import annotations

from typing import Any

from fastdiff.errors import FastdiffError

BLUE, ORANGE, INK, GRID = "#1b6ca8", "#d1603d", "#2f3640", "#e3e6ea"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def pyplot(extra: str) -> Any:
    """matplotlib.pyplot, drawing into files.

    Args:
        extra: the group of optional dependencies that has matplotlib for this picture.

    Raises:
        FastdiffError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise FastdiffError(f"pictures need matplotlib: pip install 'fastdiff[{extra}]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
