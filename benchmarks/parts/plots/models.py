"""Draws how many times as fast as eager PyTorch each engine runs whole U-Nets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from parts.plots.style import INK, QUIET, quiet, save

NAMES = {
    "fastdiff": "fastdiff",
    "diffusers, fastdiff.optimize": "diffusers + fastdiff",
    "OpenVINO": "OpenVINO",
    "torch.compile": "torch.compile",
    "eager": "PyTorch eager",
    "diffusers": "diffusers",
}  # from top to bottom
OWN = ("fastdiff", "diffusers, fastdiff.optimize")
COLOURS = {("float32", True): "#1f4e8c", ("bfloat16", True): "#7fa6d6",
           ("float32", False): "#8b929b", ("bfloat16", False): "#cbd0d6"}  # fmt: skip
BAR, BETWEEN, TITLE = 0.36, 0.3, 1.15  # heights, in units of which each side takes one or two bars and a gap
INCHES = 0.27  # per unit


def bars(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Side -> dtype -> ratio; of eager's two layouts the faster one."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        ratios = found.setdefault(row["side"].removesuffix(", channels_last"), {})
        ratios[row["dtype"]] = max(row["ratio"], ratios.get(row["dtype"], 0))
    return {side: found[side] for side in NAMES if side in found}


def draw(content: dict[str, Any], folder: Path) -> None:
    """``engine.png``: one column of bars, settings below each other, float32 dark and bfloat16 light."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in content["rows"]:
        rows.setdefault((row["preset"], row["batch"]), []).append(row)
    settings = [(s, bars(rows[s["preset"], s["batch"]])) for s in content["settings"]]
    height = sum(TITLE + sum(len(r) * BAR + BETWEEN for r in b.values()) + 0.35 for _, b in settings)
    most = max(ratio for _, b in settings for r in b.values() for ratio in r.values())
    figure, axes = plt.subplots(figsize=(4.6, height * INCHES * 1.35 + 0.95), dpi=150, layout="constrained")
    y = 0.0
    for setting, sides in settings:
        y = _setting(axes, y, setting, sides)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    axes.set(xlim=(0, most * 1.13), ylim=(y, 0), yticks=[])
    quiet(axes, "times as fast as PyTorch eager (float32, contiguous)", "x")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[dtype, True]) for dtype in ("float32", "bfloat16")]
    figure.legend(
        handles,
        ["float32", "bfloat16"],
        loc="outside upper right",
        ncols=2,
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
    save(figure, folder / "engine.png")


def _setting(axes: Any, y: float, setting: dict[str, Any], sides: dict[str, dict[str, float]]) -> float:
    """A title and its bars from y downwards -> where they end."""
    size = setting["parameters"] / 1e6
    beside = axes.get_yaxis_transform()  # x in widths of the axes
    title = f"{setting['preset']}, batch {setting['batch']}"
    y += TITLE * 0.62
    axes.text(-0.36, y, title, transform=beside, weight="bold", va="center")
    axes.text(1, y, f"{size:.3g} M parameters", transform=beside, color=QUIET, ha="right", va="center")
    y += TITLE * 0.38
    for side, ratios in sides.items():
        own = side in OWN
        middle = y + len(ratios) * BAR / 2
        weight = "bold" if own else "normal"
        axes.text(-0.02, middle, NAMES[side], transform=beside, ha="right", va="center", weight=weight)
        for dtype, ratio in ratios.items():
            axes.barh(y + BAR / 2, ratio, height=BAR * 0.94, color=COLOURS[dtype, own], zorder=2)
            number = f" {ratio:.2f}"
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # over the line at 1
            axes.text(
                ratio, y + BAR / 2, number, va="center", fontsize=7.5, weight=weight, zorder=4, bbox=paper
            )
            y += BAR
        y += BETWEEN * 0.6
    return y + 0.35
