"""Draws FID, precision and recall of each sampler over the network calls of an image."""

from __future__ import annotations

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

# The samplers that are told apart where there are more than styles.
MARKED = ("ancestral", "ddim", "heun", "dpmpp", "unipc", "deis", "consistency")
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
    names = sorted(dict.fromkeys(row["sampler"] for row in content["rows"]), key=list(SAMPLERS).index)
    marked = names if len(names) <= len(STYLES) else [name for name in names if name in MARKED]
    for sampler in [*(name for name in names if name not in marked), *marked]:
        rows = sorted((r for r in content["rows"] if r["sampler"] == sampler), key=lambda r: r["nfe"])
        line: dict[str, Any] = {"color": QUIET, "linewidth": 0.8, "alpha": 0.45}
        if sampler in marked:
            colour, mark = STYLES[marked.index(sampler)]
            label = LABELS.get(sampler, SAMPLERS[sampler].title)
            line = {"color": colour, "linewidth": 1.6, "marker": mark, "markersize": 5, "label": label}
        axes.plot([r["nfe"] for r in rows], [r[metric] for r in rows], **line)
    if len(marked) < len(names):
        axes.plot([], [], color=QUIET, linewidth=0.8, label=f"{len(names) - len(marked)} other samplers")
    real = content["real"][metric]
    axes.axhline(
        real, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, label=f"as many real images ({content['n']})"
    )
    # A sampler of several calls a step may miss the number that it was asked for by one.
    calls = sorted({r["nfe"] for r in content["rows"] if r["nfe"] == r["steps"]})
    axes.set(xscale="log", xlabel="network calls per image")
    axes.set_xticks(calls, [str(c) for c in calls])
    axes.minorticks_off()
    axes.grid(alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
