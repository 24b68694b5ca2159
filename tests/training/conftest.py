"""A toy data set and a network that trains in milliseconds a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.training import TrainConfig

MODEL = {
    "image_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "num_classes": 2,
    "null_label": True,
    "dropout": 0.1,
}


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Any]:
    """Options of a run on 40 images of two classes: bright left half, bright right half."""
    images = np.full((40, 8, 8), 20, np.uint8)
    labels = np.arange(40) % 2
    images[labels == 0, :, :4] = 200
    images[labels == 1, :, 4:] = 200
    np.savez(tmp_path / "toy.npz", images=images, labels=labels)
    preset = {"model": MODEL, "diffusion": {"steps": 20, "schedule": "cosine", "prediction": "v"}}
    (tmp_path / "toy.json").write_text(json.dumps(preset))
    return {
        "data": tmp_path / "toy.npz",
        "preset": str(tmp_path / "toy.json"),
        "out": tmp_path / "run",
        "batch_size": 8,
        "warmup": 5,
        "progress": False,
        "log_every": 1,
    }


@pytest.fixture
def toy_config(toy: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**toy, steps=6, checkpoint_every=3)
