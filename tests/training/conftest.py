"""A toy data set and a network that trains in milliseconds a step."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def write_toy(folder: Path) -> None:
    """toy.npz, 40 images of two classes (bright left half, bright right half), and toy.json, the network."""
    images = np.full((40, 8, 8), 20, np.uint8)
    labels = np.arange(40) % 2
    images[labels == 0, :, :4] = 200
    images[labels == 1, :, 4:] = 200
    np.savez(folder / "toy.npz", images=images, labels=labels)
    preset = {"model": MODEL, "diffusion": {"steps": 20, "schedule": "cosine", "prediction": "v"}}
    (folder / "toy.json").write_text(json.dumps(preset))


@pytest.fixture(scope="session")
def toy_files() -> Callable[[Path], None]:
    """:func:`write_toy`, for fixtures that outlive a test."""
    return write_toy


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Any]:
    """Options of a run on :func:`write_toy`'s files."""
    write_toy(tmp_path)
    return {
        "data": tmp_path / "toy.npz",
        "preset": str(tmp_path / "toy.json"),
        "out": tmp_path / "run",
        "batch_size": 8,
        "warmup": 5,
        "device": "cpu",
        "progress": False,
        "log_every": 1,
        "sample_every": 0,
    }


@pytest.fixture
def toy_config(toy: dict[str, Any]) -> TrainConfig:
    return TrainConfig(**toy, steps=6, checkpoint_every=3)


@pytest.fixture
def no_dropout(toy: dict[str, Any]) -> None:
    """The toy network without dropout, whose units depend on how a batch is divided."""
    path = Path(toy["preset"])
    preset = json.loads(path.read_text())
    preset["model"]["dropout"] = 0.0
    path.write_text(json.dumps(preset))
