"""Draws what few steps cost in quality: FID over network calls; samples and edited images side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from parts.plots.samplers import quality
from parts.plots.style import INK, save


def draw(content: dict[str, Any], folder: Path) -> None:
    """``few_steps.png``."""
    quality(content, folder / "few_steps.png")


def samples(ways: dict[str, np.ndarray], classes: list[str], folder: Path) -> None:
    """``few_steps_samples.png``: for each way to sample, by its caption, rows of one image of each class.

    Args:
        ways: [k len(classes),H,W] uint8 by caption, class by class.
    """
    figure, panels = plt.subplots(
        len(ways), 1, figsize=(8.6, 1.78 * len(ways)), dpi=110, layout="constrained"
    )
    for axes, (caption, images) in zip(panels, ways.items(), strict=True):
        height, width = images.shape[1:]
        rows = images.reshape(-1, len(classes), height, width)
        axes.imshow(
            np.concatenate([np.concatenate(list(row), axis=1) for row in rows]), cmap="gray", vmin=0, vmax=255
        )
        axes.set_ylabel(caption, color=INK)
        middles = [width * (k + 0.5) for k in range(len(classes))]
        axes.set_xticks(middles, classes if axes is panels[-1] else [""] * len(classes))
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    save(figure, folder / "few_steps_samples.png")


def editing(columns: dict[str, np.ndarray], folder: Path) -> None:
    """``few_steps_editing.png``: a column of images [4,H,W] uint8 under each caption."""
    size = next(iter(columns.values())).shape
    figure, axes = plt.subplots(figsize=(1.25 * len(columns), 1.32 * size[0]), dpi=110, layout="constrained")
    gap = np.full((size[0] * size[1], 2), 255, np.uint8)
    parts = [part for images in columns.values() for part in (images.reshape(-1, size[2]), gap)]
    axes.imshow(np.concatenate(parts[:-1], axis=1), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([(size[2] + 2) * k + size[2] / 2 for k in range(len(columns))], list(columns))
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, folder / "few_steps_editing.png")
