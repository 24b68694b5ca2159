"""``fastdiff dpm2015``: numbers beside the paper's, pictures, and mistakes in one line."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from PIL import Image


def _picture(path) -> None:
    with Image.open(path) as picture:
        assert picture.width > 800 and len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20


def test_swiss_roll(command, tmp_path) -> None:
    options = ["--iterations", 3, "--batch", 20, "--units", 20, "--steps", 8, "--first-beta", 0.001]
    ended = command("dpm2015", "swiss-roll", *options, "--out", tmp_path / "new", "--no-progress")
    assert ended.code == 0 and "2.350" in ended.out and "6.450" in ended.out and "K - L_null" in ended.out
    _picture(tmp_path / "new" / "swiss_roll.png")


def test_heartbeat(command, tmp_path) -> None:
    options = ["--iterations", 3, "--batch", 20, "--steps", 30, "--rate", 0.5]
    ended = command("dpm2015", "heartbeat", *options, "--out", tmp_path, "--no-progress")
    assert ended.code == 0 and "-2.414" in ended.out and "for any factorised reverse kernel" in ended.out
    assert "equation 9, 64 trajectories" in ended.out and "given x_2 = 1" in ended.out
    _picture(tmp_path / "heartbeat.png")


def test_dead_leaves_and_their_weights(command, tmp_path) -> None:
    options = ["--steps", 12, "--images", 40, "--size", 8, "--width", 8, "--layers", 1, "--out", tmp_path]
    ended = command("dpm2015", "dead-leaves", "--iterations", 2, "--batch", 4, *options, "--no-progress")
    assert ended.code == 0 and "1.489" in ended.out and "bits a pixel" in ended.out
    _picture(tmp_path / "dead_leaves.png")
    again = command(
        "dpm2015", "dead-leaves", "--weights", tmp_path / "dead_leaves.safetensors", *options, "--no-progress"
    )
    lines = [[line for line in run.out.splitlines() if line.startswith("K ")] for run in (ended, again)]
    assert again.code == 0 and lines[0] == lines[1]


def test_mnist_by_name_with_half_hidden(command, tmp_path) -> None:
    rng = np.random.default_rng(1)
    for part in ("train", "t10k"):
        raw = struct.pack(">IIII", 2051, 40, 28, 28) + rng.integers(0, 255, 40 * 784, np.uint8).tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
    options = ["--iterations", 1, "--batch", 2, "--steps", 4, "--width", 8, "--layers", 1, "--crop", 8]
    options += ["--hide", "left", "--repeats", 2, "--trajectories", 1]
    ended = command("dpm2015", "mnist", "--data", tmp_path, *options, "--out", tmp_path, "--no-progress")
    assert ended.code == 0 and "bits a pixel (equation 9, 1 trajectories of 40)" in ended.out
    _picture(tmp_path / "mnist.png")


MISTAKES = {
    "rate": (["heartbeat", "--rate", 1.5], "rate must lie between 0 and 1, got 1.5"),
    "iterations": (["swiss-roll", "--iterations", 0], "iterations and batch must be at least 1"),
    "steps": (["heartbeat", "--steps", 1], "at least 2 steps, got 1"),
    "no-fashion": (["fashion", "--data", "nowhere"], "no data at nowhere"),
    "no-cifar": (["cifar10"], "give at least one file of CIFAR-10's binary version"),
    "cifar-missing": (["cifar10", "none.bin"], "cannot read none.bin"),
    "weights": (["dead-leaves", "--images", 5, "--weights", "none.st"], "cannot read none.st"),
    "no-images": (["dead-leaves", "--images", 0], "n must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(command, tmp_path, name: str) -> None:
    options, words = MISTAKES[name]
    ended = command("dpm2015", *options, "--out", tmp_path / "out")
    assert ended.code == 2 and words in ended.err and len(ended.err.strip().splitlines()) == 1
