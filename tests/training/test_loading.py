"""What a step sees does not depend on the workers, and they end with the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fastdiff.data.images import ImageData, load_data
from fastdiff.data.loading import ImageLoader, usual_workers
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.batches import Shuffled

ORDER = Shuffled(20, seed=1)


def indices_of_step(step: int) -> Tensor:
    return ORDER.indices(step, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 pictures of two classes and of several sizes, none of them 8x8."""
    rng = np.random.default_rng(0)
    for i in range(20):
        file = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + i, 30, 3), np.uint8)).save(file)
    return tmp_path / "pictures"


@pytest.fixture
def data(folder: Path) -> ImageData:
    return load_data(folder, image_size=8, channels=3, num_classes=2, fit="random-crop", seed=1)


def workers_alive() -> int:
    return len(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("first", [0, 3])
def test_images_do_not_depend_on_workers_or_on_the_first_step(
    data: ImageData, workers: int, first: int
) -> None:
    alone = ImageLoader(data, indices_of_step, 0)
    loader = ImageLoader(data, indices_of_step, workers)
    state = torch.get_rng_state()
    for step in [*range(first, first + 8), 2, 3]:  # over two epochs; then back, and on
        images = loader.images(step)
        assert images.shape == (6, 3, 8, 8) and images.dtype == torch.uint8
        assert torch.equal(images, alone.images(step))
        assert torch.equal(images, data.fetch(indices_of_step(step), step))
    assert torch.equal(torch.get_rng_state(), state)
    assert workers_alive() == workers
    loader.close()
    assert workers_alive() == 0


def test_workers_run_beside_used_threads(data: ImageData) -> None:
    """A process that has used OpenMP may be copied, as workers stay on one thread."""
    torch.set_num_threads(2)
    torch.randn(300, 300) @ torch.randn(300, 300)
    torch.randn(1 << 20).sin()
    loader = ImageLoader(data, indices_of_step, 2)
    assert loader.images(0).shape == (6, 3, 8, 8)
    loader.close()


def test_usual_workers(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usual_workers(data) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usual_workers(data) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert usual_workers(data) == 1
    assert usual_workers(ImageData(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_ends_the_run_with_its_name(folder: Path, data: ImageData, workers: int) -> None:
    (folder / "b" / "07.png").write_bytes((folder / "b" / "07.png").read_bytes()[:200])
    loader = ImageLoader(data, indices_of_step, workers)
    with pytest.raises(FastdiffError) as told:
        for step in range(4):
            loader.images(step)
    assert str(told.value).startswith(f"cannot read the image {folder / 'b' / '07.png'}: ")
    assert "\n" not in str(told.value)
    assert workers_alive() == 0


class Asleep(ImageData):
    def fetch(self, indices: Tensor, step: int | None = None) -> Tensor:
        time.sleep(60)
        return super().fetch(indices, step)


def test_dead_worker_is_told(data: ImageData) -> None:
    loader = ImageLoader(Asleep(data.images), indices_of_step, 1)
    killer = threading.Timer(0.3, lambda: multiprocessing.active_children()[0].kill())
    killer.start()
    with pytest.raises(FastdiffError, match="workers that decode images ended .* fewer --workers"):
        loader.images(0)
    assert workers_alive() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_workers_alone(data: ImageData, number: signal.Signals) -> None:
    loader = ImageLoader(data, indices_of_step, 2)
    loader.images(0)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, number)
    for step in range(1, 12):
        loader.images(step)
    assert workers_alive() == 2
    loader.close()


def test_training_does_not_depend_on_workers(toy: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """2 steps with a worker, then 2 without, are the 4 steps without."""
    options = {**toy, "data": folder, "batch_size": 6, "checkpoint_every": 2}
    train(TrainConfig(**{**options, "out": tmp_path / "whole"}, steps=4, workers=0))
    resumed = {**options, "out": tmp_path / "resumed"}
    train(TrainConfig(**resumed, steps=2, workers=1))
    assert workers_alive() == 0
    train(TrainConfig(**resumed, steps=4, workers=0))
    name = "checkpoints/step-00000004.safetensors"
    whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "resumed" / name)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_ctrl_c_to_the_whole_group_writes_a_checkpoint_and_no_traceback(
    toy: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    command = [sys.executable, "-m", "fastdiff", "train", "--data", folder, "--preset", toy["preset"]]
    command += ["--out", tmp_path / "run", "--batch-size", "6", "--log-every", "1", "--threads", "1"]
    command += ["--workers", "2", "--no-progress"]
    process = subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, "ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    told = process.stderr.read()
    assert process.wait() == 130
    assert told.startswith("stopped after step ") and told.count("\n") == 1
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


def test_a_loader_left_open_does_not_hold_up_the_exit(folder: Path) -> None:
    code = f"""
import torch
from pathlib import Path
from fastdiff.data.images import load_data
from fastdiff.data.loading import ImageLoader
data = load_data(Path({str(folder)!r}), image_size=8, channels=3, num_classes=None)
loader = ImageLoader(data, lambda step: torch.arange(6), 1)
loader.images(0)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3
