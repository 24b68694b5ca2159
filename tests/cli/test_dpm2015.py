"""``fastdiff dpm2015``: numbers beside the paper's, pictures, and mistakes in one line."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from PIL import Image


def _picture(path) -> None:
    with Image.open(path) as picture:
        assert picture.width > 800 and len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20


def test_swiss_roll(command, tmp_path) -> None:
    options = ["--iterations", 3, "--batch-size", 20, "--units", 20, "--steps", 8, "--first-beta", 0.001]
    options += ["--val-every", 2]
    ended = command("dpm2015", "swiss-roll", *options, "--out", tmp_path / "new", "--no-progress")
    assert ended.code == 0 and "2.350" in ended.out and "6.450" in ended.out and "K - L_null" in ended.out
    _picture(tmp_path / "new" / "swiss_roll.png")
    _picture(tmp_path / "new" / "swiss_roll_curve.png")
    assert [line["step"] for line in _log(tmp_path / "new")] == [2, 3]


def test_heartbeat(command, tmp_path) -> None:
    options = ["--iterations", 3, "--batch-size", 20, "--steps", 30, "--rate", 0.5]
    ended = command("dpm2015", "heartbeat", *options, "--out", tmp_path, "--no-progress")
    assert ended.code == 0 and "-2.414" in ended.out and "for any factorised reverse kernel" in ended.out
    assert "equation 9, 64 trajectories" in ended.out and "given x_2 = 1" in ended.out
    _picture(tmp_path / "heartbeat.png")


def test_dead_leaves_and_their_weights(command, tmp_path) -> None:
    options = ["--steps", 12, "--images", 40, "--size", 8, "--width", 8, "--layers", 1, "--out", tmp_path]
    ended = command("dpm2015", "dead-leaves", "--iterations", 2, "--batch-size", 4, *options, "--no-progress")
    assert ended.code == 0 and "1.489" in ended.out and "bits a pixel" in ended.out
    _picture(tmp_path / "dead_leaves.png")
    again = command(
        "dpm2015", "dead-leaves", "--weights", tmp_path / "dead_leaves.safetensors", *options, "--no-progress"
    )
    lines = [[line for line in run.out.splitlines() if line.startswith("K ")] for run in (ended, again)]
    assert again.code == 0 and lines[0] == lines[1]


def test_bark_generated_and_from_photographs(command, tmp_path) -> None:
    options = ["--steps", 6, "--images", 40, "--size", 16, "--width", 8, "--layers", 1, "--iterations", 2]
    options += ["--batch-size", 2, "--repeats", 1, "--no-progress"]
    ended = command("dpm2015", "bark", *options, "--out", tmp_path / "generated")
    assert ended.code == 0 and "-0.550" in ended.out and "1.500" in ended.out
    for name in ("bark.png", "bark_curve.png"):
        _picture(tmp_path / "generated" / name)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    own = ["--data", tmp_path / "photos", "--out", tmp_path / "own"]
    assert command("dpm2015", "bark", *options, *own).code == 0
    _picture(tmp_path / "own" / "bark.png")
    ended = command("dpm2015", "bark", *options, *own, "--size", 32)
    assert ended.code == 2 and "is smaller than 32x32; give a smaller --size" in ended.err


def test_mnist_by_name_with_half_hidden(command, tmp_path) -> None:
    rng = np.random.default_rng(1)
    for part in ("train", "t10k"):
        raw = struct.pack(">IIII", 2051, 40, 28, 28) + rng.integers(0, 255, 40 * 784, np.uint8).tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
    options = ["--iterations", 1, "--batch-size", 2, "--steps", 4, "--width", 8, "--layers", 1, "--crop", 8]
    options += ["--hide", "left", "--repeats", 2, "--trajectories", 1]
    ended = command("dpm2015", "mnist", "--data", tmp_path, *options, "--out", tmp_path, "--no-progress")
    assert ended.code == 0 and "bits a pixel (equation 9, 1 trajectories of 40)" in ended.out
    _picture(tmp_path / "mnist.png")


def test_fewer_test_images_than_the_picture_shows(command, tmp_path) -> None:
    """40 images leave 4 for testing; the picture shows 15, in turn."""
    records = np.random.default_rng(1).integers(0, 256, (40, 3073), np.uint8)
    records[:, 0] = 1
    (tmp_path / "batch.bin").write_bytes(records.tobytes())
    options = ["--iterations", 1, "--batch-size", 2, "--steps", 4, "--width", 8, "--layers", 1, "--crop", 8]
    ended = command("dpm2015", "cifar10", tmp_path / "batch.bin", *options, "--repeats", 1, "--out", tmp_path)
    assert ended.code == 0, ended.err
    _picture(tmp_path / "cifar10.png")


COMMAND = ["dpm2015", "heartbeat", "--iterations", 12, "--batch-size", 20, "--steps", 30]
COMMAND += ["--checkpoint-every", 4, "--particles", 2, "--trajectories", 2]
KILLED = """
import os, signal, sys
from fastdiff.cli import main
from fastdiff.dpm2015 import Training
update = Training.update
def killed(self):
    if self.iteration == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self)
Training.update = killed
main(sys.argv[1:])
"""


def test_a_killed_command_continues(command, tmp_path: Path) -> None:
    whole = command(*COMMAND, "--out", tmp_path / "whole", "--no-progress")
    argv = [str(word) for word in [*COMMAND, "--out", tmp_path / "killed", "--no-progress"]]
    killed = programs.run("-c", KILLED, *argv)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "heartbeat.png").exists()
    again = command(*argv)
    assert again.code == whole.code == 0 and "resumed    at iteration 4 of 12" in again.out
    values = [
        [line for line in ended.out.splitlines() if line[:2] in ("K ", "lo", "gi")]
        for ended in (whole, again)
    ]
    assert len(values[0]) == 5 and values[0] == values[1]
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")
    assert "resumed    at iteration 12 of 12; another --out trains anew" in command(*argv).out


def test_ctrl_c_ends_with_a_message_and_130(command, tmp_path: Path, monkeypatch) -> None:
    from fastdiff.dpm2015 import Training

    update = Training.update

    def interrupted(self: Training) -> None:
        if self.iteration == 5:
            os.kill(os.getpid(), signal.SIGINT)
        update(self)

    monkeypatch.setattr(Training, "update", interrupted)
    ended = command(*COMMAND, "--out", tmp_path, "--no-progress")
    words = "fastdiff: stopped after iteration 6 of 12; the same command continues from there\n"
    assert ended == (130, "", words)


def test_another_experiment_or_other_options_in_the_folder(command, tmp_path: Path) -> None:
    assert command(*COMMAND, "--out", tmp_path, "--no-progress").code == 0
    ended = command(*COMMAND, "--out", tmp_path, "--lr", 0.5, "--particles", 3, "--val-every", 7)
    assert ended.code == 2 and ended.err == (
        f"fastdiff: {tmp_path} holds a run with --lr = 0.01, now --lr = 0.5 is asked for;"
        " give another --out\n"
    )
    ended = command("dpm2015", "swiss-roll", "--out", tmp_path, "--units", 20)
    assert (
        ended.code == 2
        and "with experiment = heartbeat, " in ended.err
        and "experiment = swiss-roll" in ended.err
    )
    assert len(ended.err.splitlines()) == 1


def _log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


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
