"""Draws the suite: how many times as fast as eager PyTorch everything is, and how far from the machine's ceilings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parts.plots.style import INK, QUIET, quiet, save

SIDES = {  # in the file -> in the picture; what is not here is eager
    "compiled": "torch.compile",
    "torch.compile": "torch.compile",
    "cpu": "fastdiff",
    "fastdiff": "fastdiff",
    "triton": "fastdiff, Triton",
    "cuda": "fastdiff, CUDA",
}
COLOURS = {  # by side: float32, bfloat16
    "torch.compile": ("#8b929b", "#cbd0d6"),
    "fastdiff": ("#1f4e8c", "#7fa6d6"),
    "fastdiff, Triton": ("#2b7a63", "#86c2b0"),
    "fastdiff, CUDA": ("#a0522d", "#d9a98c"),
}
DTYPES = ("float32", "bfloat16")
SECTIONS = {"op": "ops (median of cases)", "model": "networks", "training": "training steps"}
OPS = {  # colour and marker
    "group_norm_silu": ("#1f4e8c", "o"),
    "channel_moments": ("#3aa0a8", "v"),
    "conv2d": ("#b5432f", "s"),
    "attention": ("#7b4ea3", "D"),
    "reverse_step": ("#c98a1b", "^"),
    "bernoulli_step": ("#6f8f2f", "P"),
    "adamw_ema": ("#4b4f57", "X"),
}


class Bar(NamedTuple):
    """How many times as fast as eager: the median over cases, the least and the most."""

    side: str
    dtype: str
    ratio: float
    least: float
    most: float


def draw(content: dict[str, Any], folder: Path) -> None:
    """``bars.png`` and ``roofline.png``."""
    draw_bars(content, folder / "bars.png")
    draw_roofline(content, folder / "roofline.png")


Rows = dict[str, dict[str, list[Bar]]]  # section -> label -> bars


def rows(benchmarks: list[dict[str, Any]]) -> Rows:
    """Ops are rows over all their cases, networks and training steps one by one."""
    times: dict[tuple[str, ...], dict[str, float]] = {}
    for b in benchmarks:
        about = b["extra_info"]
        key = about["kind"], about["what"], about["case"], about["dtype"]
        side = SIDES.get(about["side"], "eager")
        median, found = b["stats"]["median"], times.setdefault(key, {})
        found[side] = min(median, found.get(side, median))  # of eager's two layouts the faster one
    ratios: dict[tuple[str, str, str, str], list[float]] = {}
    for (kind, what, case, dtype), found in times.items():
        label = what if kind == "op" else f"{what}, {case}" if kind == "model" else case
        for side in COLOURS:
            if side in found and "eager" in found:
                ratios.setdefault((kind, label, side, dtype), []).append(found["eager"] / found[side])
    picture: Rows = {}
    for (kind, label, side, dtype), r in ratios.items():
        bar = Bar(side, dtype, statistics.median(r), min(r), max(r))
        picture.setdefault(SECTIONS[kind], {}).setdefault(label, []).append(bar)
    return {section: picture[section] for section in SECTIONS.values() if section in picture}


def _sorted(bars: list[Bar]) -> list[Bar]:
    return sorted(bars, key=lambda b: (list(COLOURS).index(b.side), DTYPES.index(b.dtype)))


def draw_bars(content: dict[str, Any], picture: Path) -> None:
    """Rows from top to bottom on one logarithmic axis, each with a bar for every side and dtype."""
    found = rows(content["benchmarks"])
    height = sum(1.05 + sum(0.3 * len(bars) + 0.28 for bars in part.values()) for part in found.values())
    figure, axes = plt.subplots(figsize=(6.4, 0.5 * height + 1.0), dpi=150, layout="constrained")
    beside = axes.get_yaxis_transform()  # x in widths of the axes
    y, used = 0.0, set()
    for section, part in found.items():
        axes.text(-0.015, y + 0.5, section, transform=beside, weight="bold", ha="right", va="center")
        y += 0.95
        for label, bars in part.items():
            middle = y + 0.15 * len(bars)
            axes.text(-0.015, middle, label, transform=beside, ha="right", va="center")
            for bar in _sorted(bars):
                _bar(axes, y + 0.15, bar)
                used.add((bar.side, bar.dtype))
                y += 0.3
            y += 0.28
        y += 0.1
    ratios = [r for part in found.values() for bars in part.values() for b in bars for r in (b.least, b.most)]
    axes.set(xscale="log", xlim=(min(0.5, *ratios) / 1.1, max(ratios) * 1.5), ylim=(y, 0), yticks=[])
    low, high = (math.log2(x) for x in axes.get_xlim())
    ticks = [2.0**k for k in range(-8, 11, 2 if high - low > 9 else 1) if low < k < high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    quiet(axes, "times as fast as eager PyTorch in the same dtype", "x")
    order = [(side, dtype) for side in COLOURS for dtype in DTYPES if (side, dtype) in used]
    handles: list[Any] = [Patch(color=_colour(*key), label=", ".join(key)) for key in order]
    handles.append(Line2D([], [], color=INK, linewidth=0.9, label="least to most"))
    _finish(figure, handles, content, picture, columns=2)


def _bar(axes: Any, y: float, bar: Bar) -> None:
    colour = _colour(bar.side, bar.dtype)
    axes.barh(y, bar.ratio - 1, left=1, height=0.27, color=colour, zorder=2)
    if bar.most > bar.least:
        axes.plot([bar.least, bar.most], [y, y], color=INK, linewidth=0.9, zorder=4)
    weight = "bold" if bar.side != "torch.compile" else "normal"
    end = max(bar.most, 1.0) * 1.06
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
    axes.text(end, y, f"{bar.ratio:.2f}", fontsize=7, weight=weight, va="center", bbox=paper, zorder=5)


def _colour(side: str, dtype: str) -> str:
    return COLOURS[side][DTYPES.index(dtype)]


def points(benchmarks: list[dict[str, Any]], dtype: str) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Op, operations a byte, and GFLOP/s by side, of every case."""
    cases: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}
    for b in benchmarks:
        about = b["extra_info"]
        if about["kind"] == "op" and about["dtype"] == dtype:
            intensity = about["flops"] / about["bytes"]
            speeds = cases.setdefault((about["what"], about["case"]), (intensity, {}))[1]
            speeds[SIDES.get(about["side"], "eager")] = about["flops"] / b["stats"]["median"] / 1e9
    yield from ((op, intensity, speeds) for (op, _), (intensity, speeds) in cases.items())


def draw_roofline(content: dict[str, Any], picture: Path) -> None:
    """Both dtypes beside each other: a stroke from eager PyTorch, hollow, to fastdiff, filled, for every case."""
    about = content["about"]
    shown = [d for d in DTYPES if any(points(content["benchmarks"], d))]
    figure, panels = plt.subplots(
        1,
        len(shown),
        figsize=(4.6 * len(shown), 4.6),
        dpi=150,
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    ops: set[str] = set()
    for axes, dtype in zip(panels[0], shown, strict=True):
        intensities, speeds = [], []
        for op, intensity, by_side in points(content["benchmarks"], dtype):
            ops.add(op)
            _point(axes, op, intensity, by_side)
            intensities.append(intensity)
            speeds += by_side.values()
        peak = about["matmul_gflops"][dtype]
        axes.set(xscale="log", yscale="log", title=dtype)
        axes.set_xlim(min(intensities) / 6, max(intensities) * 2)
        axes.set_ylim(min(speeds) / 1.8, max(*speeds, peak) * 2.2)
        _roofs(axes, about["copy_gb_per_s"], peak)
        quiet(axes, "operations a byte", "both")
    panels[0][0].set_ylabel("GFLOP/s", color=QUIET)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=op)
        for op, (colour, marker) in OPS.items()
        if op in ops
    ]
    hollow: dict[str, Any] = {"color": QUIET, "marker": "o", "linestyle": "none"}
    handles += [Line2D([], [], markerfacecolor="white", label="eager PyTorch", **hollow)]
    handles += [Line2D([], [], label="fastdiff", **hollow)]
    _finish(figure, handles, content, picture, columns=5)


def _point(axes: Any, op: str, intensity: float, by_side: dict[str, float]) -> None:
    colour, marker = OPS[op]
    own = max((s for side, s in by_side.items() if side.startswith("fastdiff")), default=None)
    if own is not None:
        axes.plot([intensity] * 2, [by_side["eager"], own], color=colour, linewidth=0.7, alpha=0.5, zorder=2)
        axes.scatter(intensity, own, s=26, marker=marker, color=colour, zorder=4, linewidth=0)
    axes.scatter(
        intensity,
        by_side["eager"],
        s=22,
        marker=marker,
        facecolor="white",
        edgecolor=colour,
        linewidth=0.9,
        zorder=3,
    )


def _roofs(axes: Any, copies: dict[str, float], peak: float) -> None:
    """Copies that fit the caches and that do not, up to the peak of a large matrix product.

    Labels stand where no point does, on the left.
    """
    low, high = axes.get_xlim()
    at = low * 1.12
    text: dict[str, Any] = {"fontsize": 7.5, "color": QUIET}
    for name, speed in copies.items():
        ridge, above = peak / speed, name == "cache"
        style = (0, (4, 3)) if above else "-"
        axes.plot([low, ridge], [low * speed, peak], color=INK, linewidth=1, linestyle=style, zorder=1)
        axes.text(
            at,
            at * speed * (1.12 if above else 1 / 1.12),
            f"{name}: {speed:.0f} GB/s",
            va="bottom" if above else "top",
            rotation=math.degrees(math.atan(speed)),  # of y = speed x, wherever the axes put it
            rotation_mode="anchor",
            transform_rotates_text=True,
            **text,
        )
    axes.plot([peak / max(copies.values()), high], [peak, peak], color=INK, linewidth=1, zorder=1)
    axes.plot([low, high], [peak, peak], color=INK, linewidth=0.6, linestyle=(0, (1, 3)), zorder=1)
    axes.text(at, peak * 1.08, f"matrix product: {peak:.0f} GFLOP/s", **text)
    note = "conv2d counts the direct form;\nWinograd's needs up to 4 times fewer"
    axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", fontsize=7, color=QUIET)


def _finish(figure: Any, handles: list[Any], content: dict[str, Any], picture: Path, columns: int) -> None:
    about = content["about"]
    where = f"{about['processor']}, {about['device']}, PyTorch {about['torch'].partition('+')[0]}"
    figure.suptitle(where, fontsize=8, color=QUIET)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=1.4,
    )
    save(figure, picture)
