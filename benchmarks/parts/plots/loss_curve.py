"""Draws the loss curve of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from parts.plots.style import save

SMOOTHING = 10  # log lines on either side, each a mean over a few steps


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean; its window grows from one line on, not to flatten the steep beginning."""
    last = len(values) - 1
    half = [min(i // 6, last - i, SMOOTHING) for i in range(len(values))]
    return np.array([values[i - w : i + w + 1].mean() for i, w in enumerate(half)])


def draw(log: list[dict[str, Any]], target: Path) -> None:
    """A PNG of loss over steps, raw and smoothed, with the learning rate on the same axis of steps."""
    lines = [line for line in log if "loss" in line]
    step, loss, rate = (np.array([line[key] for line in lines]) for key in ("step", "loss", "lr"))
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 5.2), dpi=120, height_ratios=(4, 1), layout="constrained"
    )
    above.plot(step, loss, color="#9db8d9", linewidth=0.8, label="as logged")
    above.plot(
        step,
        smooth(loss),
        color="#1f4e8c",
        linewidth=1.8,
        label=f"running mean, up to {2 * SMOOTHING + 1} lines",
    )
    above.set(yscale="log", ylabel="training loss (mean squared error)")
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("{x:g}")
    above.grid(which="both", alpha=0.3)
    above.legend()
    below.plot(step, rate, color="#b8562f")
    below.set(xlabel="step", ylabel="learning rate", xlim=(0, step[-1]))
    below.grid(alpha=0.3)
    save(figure, target)
