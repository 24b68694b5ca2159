"""One look for all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, QUIET, GRID = "#22272e", "#6b737d", "#e4e7eb"

plt.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans", "text.color": INK})


def quiet(axes: Any, label: str, grid: str) -> None:
    """A grid and numbers that stay in the background."""
    axes.set_xlabel(label, color=QUIET)
    axes.tick_params(colors=QUIET, length=0, which="both")
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def save(figure: Any, picture: Path) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, facecolor="white")
    plt.close(figure)
    print(f"wrote {picture}")
