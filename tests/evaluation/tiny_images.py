"""A tiny classifier of 8 x 8 images, and images for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import tiny
import torch

from fastdiff.evaluation.images import Images
from fastdiff.models import build_model


def tiny_classifier(**options: Any) -> Any:
    torch.manual_seed(0)
    model = build_model(replace(tiny.GRAY_CLASSIFIER, **options))
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    return model.eval().requires_grad_(False)


def pictures(n: int, seed: int = 0, brightness: int = 255) -> np.ndarray:
    """[n,8,8,1] uint8."""
    return np.random.default_rng(seed).integers(0, brightness + 1, (n, 8, 8, 1), dtype=np.uint8)


def images(n: int, seed: int = 0, brightness: int = 255) -> Images:
    return Images(torch.from_numpy(pictures(n, seed, brightness)).movedim(-1, 1), f"images of seed {seed}")
