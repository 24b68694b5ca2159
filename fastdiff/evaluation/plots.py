"""A plot of the bound: the term of each step, in bits per dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.files import atomic_path
from fastdiff.plots import pyplot


def draw_bound(summary: dict[str, Any], path: Path, title: str = "") -> None:
    """The terms of the bound over timesteps, both axes logarithmic (IDDPM figure 2), as a PNG.

    Args:
        summary: the result of :meth:`fastdiff.evaluation.likelihood.Likelihood.summary`.

    Raises:
        FastdiffError: no matplotlib, or a file that cannot be written.
    """
    plt = pyplot("evaluate")
    steps = [t + 1 for t in summary["timesteps"]]  # a logarithmic axis has no 0
    figure = plt.figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, summary["vb"], color="#1f4e8c", linewidth=1.5, marker="." if len(steps) < 60 else "")
    axes.set(xscale="log", yscale="log", xlabel="timestep t, counted from 1", ylabel="bits per dimension")
    axes.grid(which="major", alpha=0.4)
    axes.set_title(title, fontsize=10)
    total = f"total {summary['bits_per_dim']:.3f} bits per dimension"
    parts = f"prior {summary['prior']:.2g}, t = 1: {summary['vb'][0]:.3f}"
    axes.text(0.98, 0.96, f"{total}\n{parts}", transform=axes.transAxes, ha="right", va="top")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    plt.close(figure)
