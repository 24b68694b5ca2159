"""Draws FID, precision and recall of each sampler over the network calls of an image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from fastdiff.sampling.samplers import SAMPLERS
from parts.plots.style import INK, QUIET, save

# Colours that colour-blind people can distinguish, too (Okabe & Ito), and a mark for each.
STYLES = (
    ("#D55E00", "o"),
    ("#E69F00", "s"),
    ("#56B4E9", "^"),
    ("#009E73", "D"),
    ("#0072B2", "v"),
    ("#CC79A7", "P"),
    (INK, "*"),
)

LABELS = {"consistency": "the few-step model"}


def draw(content: dict[str, Any], folder: Path) -> None:
    """``samplers.png``."""
    quality(content, folder / "samplers.png")


def quality(content: dict[str, Any], picture: Path) -> None:
    """FID on the left, precision and recall on the right, all over network calls."""
    figure, panels = plt.subplots(
        1, 3, figsize=(10.5, 3.9), dpi=130, layout="constrained", width_ratios=(1.6, 1, 1)
    )
    for axes, metric in zip(panels, ("fid", "precision", "recall"), strict=True):
        _panel(axes, content, metric)
    panels[0].set(yscale="log", ylabel=f"FID on {content['about']['features']} features")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_title("FID, lower is better", fontsize=10)
    panels[1].set_title("precision, higher is better", fontsize=10)
    panels[2].set_title("recall, higher is better", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = len(labels) if len(labels) < 7 else -(-len(labels) // 2)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    save(figure, picture)


def _panel(axes: Any, content: dict[str, Any], metric: str) -> None:
    names = list(dict.fromkeys(row["sampler"] for row in content["rows"]))
    for number, sampler in enumerate(sorted(names, key=list(SAMPLERS).index)):
        method, (colour, mark) = SAMPLERS[sampler], STYLES[number % len(STYLES)]
        rows = sorted((r for r in content["rows"] if r["sampler"] == sampler), key=lambda r: r["nfe"])
        x, y = [r["nfe"] for r in rows], [r[metric] for r in rows]
        axes.plot(
            x,
            y,
            color=colour,
            marker=mark,
            markersize=5,
            linewidth=1.6,
            label=LABELS.get(sampler, method.title),
        )
    real = content["real"][metric]
    axes.axhline(
        real, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, label=f"as many real images ({content['n']})"
    )
    # A sampler of several calls a step may miss the number that it was asked for by one.
    counts = Counter(r["nfe"] for r in content["rows"])
    calls = sorted(nfe for nfe, count in counts.items() if count > 1)
    axes.set(xscale="log", xlabel="network calls per image")
    axes.set_xticks(calls, [str(c) for c in calls])
    axes.minorticks_off()
    axes.grid(alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
