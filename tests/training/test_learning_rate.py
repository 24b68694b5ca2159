"""The learning rate: warm-up, schedules, and what a run that goes on makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdiff.cli import main
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train


def rates(**options: Any) -> list[float]:
    config = TrainConfig(Path(), Path(), lr=1.0, **options)
    return [config.learning_rate(step) for step in range(config.steps)]


def test_constant_after_the_warm_up() -> None:
    assert rates(steps=6, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(steps=3, warmup=0) == [1.0, 1.0, 1.0]


def test_linear_falls_over_the_last_steps_as_it_always_did() -> None:
    found = rates(steps=20, warmup=4, lr_schedule="linear", decay=5)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[14:] == [1.0, 1.0, 0.8, 0.6, 0.4, 0.2]


def test_the_fall_begins_where_the_warm_up_ends() -> None:
    assert rates(steps=8, warmup=4, lr_schedule="linear") == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    found = rates(steps=12, warmup=4, lr_schedule="cosine")
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])
    assert found[8] == pytest.approx(0.5)


def test_cosine_over_the_last_steps() -> None:
    found = rates(steps=10, warmup=0, lr_schedule="cosine", decay=4)
    assert found[:7] == [1.0] * 7
    assert found[7:] == pytest.approx([(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_guided_diffusions_annealing() -> None:
    """lr (1 - k / lr_anneal_steps) at step k."""
    assert rates(steps=50, warmup=0, lr_schedule="linear") == pytest.approx([1 - k / 50 for k in range(50)])


def test_torchs_schedulers_agree() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    expected = []
    for _ in range(30):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(steps=30, warmup=0, lr_schedule="cosine") == pytest.approx(expected)


def test_a_resumed_run_is_the_unbroken_one(toy: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    options = [
        "--lr-schedule",
        "cosine",
        "--warmup",
        "3",
        "--steps",
        "9",
        "--log-every",
        "1",
        "--device",
        "cpu",
    ]
    options += ["--checkpoint-every", "4", "--batch-size", "8", "--threads", "1", "--no-progress"]
    given = ["train", "--data", str(toy["data"]), "--preset", toy["preset"], *options]
    assert main([*given, "--out", str(tmp_path / "whole")]) == 0
    assert main([*given, "--out", str(tmp_path / "resumed")]) == 0
    for name in ("checkpoints/step-00000009.safetensors", "model.safetensors"):
        (tmp_path / "resumed" / name).unlink()  # as if it had been killed after step 8
    assert main([*given, "--out", str(tmp_path / "resumed")]) == 0
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    lines = [json.loads(line) for line in (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()]
    expected = [1 / 3, 2 / 3, 1, *((1 + math.cos(math.pi * k / 6)) / 2 for k in range(6))]
    assert [line["lr"] for line in lines] == pytest.approx([1e-3 * rate for rate in expected])


def test_errors(toy: dict[str, Any]) -> None:
    with pytest.raises(FastdiffError, match="give --lr-schedule linear with it"):
        train(TrainConfig(**toy, decay=100))
    with pytest.raises(
        FastdiffError, match="lr_schedule must be one of constant, linear, cosine, got 'step'"
    ):
        TrainConfig(**toy, lr_schedule="step")  # pyright: ignore
    with pytest.raises(FastdiffError, match="decay must be at least 1"):
        TrainConfig(**toy, lr_schedule="linear", decay=0)
