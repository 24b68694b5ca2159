"""The files that the pages' commands read, made small: pictures, data sets, and released files with random weights."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import inception
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fastdiff
from fastdiff import decision
from fastdiff.interop.consistency_models.unet import planar
from fastdiff.models import ClassifierConfig, ModelConfig
from fastdiff.zoo import PRESETS, Preset

RNG = np.random.default_rng(0)


def shrink_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large presets become networks of 16 pixels (upsamplers: 32), under their names and with their kind."""
    for name, preset in list(PRESETS.items()):
        if not name.startswith(("fashion-mnist", "emoji")):
            monkeypatch.setitem(PRESETS, name, replace(preset, model=_small(preset)))


def _small(preset: Preset) -> ModelConfig:
    model = preset.model
    small = {
        "image_size": 16,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "num_head_channels": 32,
    }
    if not isinstance(model, ClassifierConfig) and model.low_res is not None:
        small["image_size"] = 32
    return replace(model, **small)


def make(folder: Path) -> None:
    """All files, in a folder; presets must be small already."""
    for place in ("photos", "held-out"):
        _pictures(folder / place, ("circle", "square"), (40, 40, 3), 12)
    for size in (64, 128):
        _pictures(folder / f"emoji{size}", (f"class-{k}" for k in range(9)), (size, size, 3), 6)
    _pictures(folder / "imagenet" / "train", (f"n{k:04d}" for k in range(1000)), (16, 16, 3), 1)
    (folder / "imagenet" / "val").symlink_to("train")
    _pictures(folder, ("DATA",), (32, 32), 56)
    for name, value in (("image", 90), ("mask", 255), ("IMAGE", 90), ("MASK", 255)):
        pixels = np.zeros((32, 32), np.uint8)
        pixels[16:] = value
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.png").rename(folder / (name if name.isupper() else f"{name}.png"))
    for place in ("datasets/fashion-mnist", "mnist"):
        _idx(folder / place)
    for number in (1, 2):
        rows = RNG.integers(0, 256, (300, 3073), np.uint8)
        (folder / f"data_batch_{number}.bin").write_bytes(rows.tobytes())
    _checkpoints(folder)
    (folder / "run" / "config.json").write_text('{"data": "photos", "out": "run"}')
    _samples(folder)
    _trials(folder / "data.csv")
    (folder / "transforms.py").write_text("def train(image):\n    return image\n")


def _pictures(folder: Path, classes: Iterable[str], shape: tuple[int, ...], count: int) -> None:
    for k, kind in enumerate(classes):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            pixels = RNG.integers(0, 100, shape, np.uint8)
            pixels[4 : 12 + i, 4:12] += np.uint8(60 + 60 * (k % 2))
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")


def _idx(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images, labels = RNG.integers(0, 256, (40, 28, 28), np.uint8), np.arange(40, dtype=np.uint8) % 10
        files = {
            f"{part}-images-idx3-ubyte.gz": struct.pack(">IIII", 2051, 40, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte.gz": struct.pack(">II", 2049, 40) + labels.tobytes(),
        }
        for name, content in files.items():
            (folder / name).write_bytes(gzip.compress(content))


def _checkpoints(folder: Path) -> None:
    for preset in PRESETS.values():
        if preset.released:
            state = tiny.build(preset.model).state_dict()
            torch.save(planar(state) if preset.planar_attention else state, folder / preset.released)
    torch.save(tiny.build(replace(PRESETS["adm-64"].model, num_classes=None)).state_dict(), folder / "ema.pt")
    (folder / "ema.pt").rename(folder / "ema_0.9999_100000.pt")
    inception.write_weights(folder)
    model = tiny.build(
        replace(tiny.GRAY, image_size=40, in_channels=3, out_channels=3, num_classes=2, null_label=True)
    )
    model.diffusion, model.class_names = fastdiff.DiffusionConfig(schedule="cosine"), ("circle", "square")
    for place in ("runs/a", "run"):
        (folder / place).mkdir(parents=True)
        fastdiff.save(model, folder / place / "model.safetensors")


def _samples(folder: Path) -> None:
    (folder / "out").mkdir()
    np.savez(folder / "out" / "samples.npz", RNG.integers(0, 256, (8, 32, 32, 1), np.uint8))
    np.savez(folder / "samples.npz", RNG.integers(0, 256, (8, 16, 16, 3), np.uint8))
    np.savez(
        folder / "VIRTUAL_imagenet256_labeled.npz",
        arr_0=RNG.integers(0, 256, (24, 16, 16, 3), np.uint8),
        mu=np.zeros(2048),
        sigma=np.eye(2048),
        mu_s=np.zeros(2023),
        sigma_s=np.eye(2023),
    )


def _trials(file: Path) -> None:
    rt, choice = decision.simulate(v=1.0, a=1.2, t0=0.3, n=160, seed=1)
    rows = ["subject,condition,rt,RT,choice,acc"]
    for i, (seconds, upper) in enumerate(zip(rt.tolist(), choice.tolist(), strict=True)):
        row = (i % 2, f"c{i // 2 % 2}", min(seconds, 1.9), 1000 * seconds, upper, ("error", "correct")[upper])
        rows.append(",".join(map(str, row)))
    file.write_text("\n".join(rows) + "\n")
