"""A picture of what a model has learned so far."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdiff.files import atomic_path
from fastdiff.images import grid
from fastdiff.models import UNet
from fastdiff.sampling.api import sample, to_uint8

ROWS, COLUMNS = 4, 10
STEPS = 20


def write_preview(model: UNet, path: Path) -> None:
    """A grid of samples, always from the same noise, with the classes in turn if the model has any."""
    n = ROWS * COLUMNS
    classes = None
    if model.config.num_classes is not None:
        classes = torch.arange(n) % model.config.num_classes
    images = sample(model, n, classes=classes, sampler="dpmpp", steps=STEPS, progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        grid(to_uint8(images).cpu().numpy(), columns=COLUMNS, tile=64).save(temporary, format="PNG")
