"""Damaged and lying checkpoints: refused in a sentence, or loaded as they were written; and quickly."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from mutate import damaged, numbered, one_sentence, rounds
from safetensors.torch import save_file

import fastdiff
from fastdiff.checkpoint.save import METADATA_KEY
from fastdiff.models import UNet, build_model
from fastdiff.training.config import TrainConfig
from fastdiff.training.optimizer import AdamWEMA
from fastdiff.training.state import TrainState, identity, load_checkpoint, save_checkpoint
from fastdiff.training.timesteps import UniformTimes

CONFIG = tiny.GRAY
MOST_SECONDS = 10.0  # of the processor, for a file of a few hundred kilobytes


def network() -> UNet:
    torch.manual_seed(0)
    model = build_model(CONFIG)
    assert isinstance(model, UNet)
    model.diffusion = fastdiff.DiffusionConfig(steps=50)
    model.class_names = ("a", "b", "c")
    return model.eval()


@pytest.fixture(scope="module")
def model() -> UNet:
    return network()


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damage(tmp_path: Path, model: UNet, suffix: str) -> None:
    path, refused = tmp_path / f"x.{suffix}", 0
    if suffix == "pt":
        torch.save(model.state_dict(), path)
    else:
        fastdiff.save(model, path)
    whole = path.read_bytes()
    for number in rounds(100):
        path.write_bytes(damaged(whole, numbered(number)))
        started = time.process_time()
        with one_sentence() as said:
            found = fastdiff.load(path, image_size=8, num_heads=1)
            assert same(found, model), number
            if suffix == "safetensors":
                assert (found.diffusion, found.class_names) == (model.diffusion, model.class_names), number
        refused += len(said)
        assert time.process_time() - started < MOST_SECONDS, number
    assert refused > 0.5 * len(rounds(100))


def state() -> TrainState:
    model = network()
    optimizer = AdamWEMA(model.parameters(), 1e-3, ema_rates=(0.9,))
    optimizer.prepare()
    return TrainState(model, optimizer, UniformTimes(50), step=7)


def test_damage_of_a_training_checkpoint(tmp_path: Path) -> None:
    written, config = state(), TrainConfig(data=Path(), out=tmp_path)
    agreed = identity(config, 5, CONFIG, fastdiff.DiffusionConfig(steps=50))
    save_checkpoint(tmp_path, written, agreed, 1)
    (path,) = (tmp_path / "checkpoints").iterdir()
    whole, expected = path.read_bytes(), dict(written.tensors())
    for number in rounds(60):
        path.write_bytes(damaged(whole, numbered(number)))
        read = state()
        read.step = 0
        with one_sentence() as said:
            load_checkpoint(path, read, agreed)
        if not said:
            assert read.step == 7 and all(torch.equal(t, expected[n]) for n, t in read.tensors()), number
        with one_sentence():
            fastdiff.load(path)


VALUES = (
    0,
    1,
    -1,
    2,
    8,
    10**6,
    10**12,
    10**400,
    1.5,
    1e308,
    True,
    None,
    "x",
    "attention",
    [],
    [1],
    [1, 2, 4],
)
VALUES += ([0], [10**9], [[1]], {}, {"a": 1}, [None], float("nan"), float("inf"), [8] * 100)


def test_configurations(tmp_path: Path, model: UNet) -> None:
    """Every field is set to many values: a model fits the weights in the file, or an error is raised."""
    whole = {"kind": "unet", "model": asdict(CONFIG), "diffusion": {"steps": 50}, "class_names": ["a"]}
    path = tmp_path / "x.safetensors"
    for number in rounds(200):
        rng, about = numbered(number), json.loads(json.dumps(whole))
        for _ in range(int(rng.integers(1, 4))):
            part = about if rng.random() < 0.2 else about[("model", "diffusion")[int(rng.integers(2))]]
            if isinstance(part, dict) and part:
                part[list(part)[int(rng.integers(len(part)))]] = VALUES[int(rng.integers(len(VALUES)))]
            if not isinstance(about.get("model"), dict) or not isinstance(about.get("diffusion"), dict):
                break
        save_file(model.state_dict(), path, metadata={METADATA_KEY: json.dumps(about)})
        started = time.process_time()
        with one_sentence():
            assert same(fastdiff.load(path), model), about
        assert time.process_time() - started < MOST_SECONDS, about


def leaf(rng: np.random.Generator, model: UNet) -> Any:
    weights = model.state_dict()
    name = list(weights)[int(rng.integers(len(weights)))]
    leaves: list[Any] = [3, "x", None, [torch.zeros(2)], (1, 2), torch.zeros(2), weights[name], dict(weights)]
    leaves += [{f"module.{k}": v for k, v in weights.items()}, {name: weights[name]}, torch.zeros(0).long()]
    return leaves[int(rng.integers(len(leaves)))]


def tree(rng: np.random.Generator, model: UNet, depth: int = 0) -> Any:
    if depth == 6 or depth and rng.random() < 0.5:
        return leaf(rng, model)
    keys: list[Any] = [
        "model",
        "ema",
        "state_dict",
        "ema_0.9",
        "step",
        "optimizer",
        3,
        "time_embed.0.weight",
        "",
    ]
    chosen = rng.choice(len(keys), size=int(rng.integers(0, 4)), replace=False)
    return {keys[int(i)]: tree(rng, model, depth + 1) for i in chosen}


def test_contents_of_pickles(tmp_path: Path, model: UNet) -> None:
    """Dicts in dicts, with weights somewhere: loaded as they are, or refused."""
    path, loaded = tmp_path / "x.pt", 0
    for number in rounds(150):
        torch.save(tree(numbered(number), model), path)
        with one_sentence() as said:
            assert same(fastdiff.load(path, image_size=8, num_heads=1), model), number
        loaded += not said
    assert loaded >= 5
