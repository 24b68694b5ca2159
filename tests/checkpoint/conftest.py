"""A network small enough to be written a hundred times."""

from __future__ import annotations

import pytest
from tiny_models import TINY, build

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.models import UNet


@pytest.fixture
def model() -> UNet:
    model = build(TINY)
    model.diffusion = DiffusionConfig(steps=50, schedule="cosine")
    model.class_names = ("nought", "one", "two")
    return model
