"""float16 and its loss scale: steps that overflow leave no trace, and every precision resumes bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastdiff.choices import Precision
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer
from fastdiff.training.optimizer import LossScale
from fastdiff.training.state import checkpoints

TOO_LARGE = 2.0**24  # a scale at which the toy's gradients overflow for some steps


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def toy(toy: dict[str, Any]) -> dict[str, Any]:
    """Small batches: CPUs are slow in float16."""
    return {**toy, "batch_size": 2}


@pytest.fixture
def large_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.training.loop.LossScale", lambda: LossScale(TOO_LARGE))


def test_policy_is_grad_scalers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.training.optimizer.INTERVAL", 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)  # pyright: ignore
    mine = LossScale(1024.0)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for finite in (True, True, False, True, True, True, True, True, True, False, False, True):
        theirs.scale(weight.sum()).backward()
        assert weight.grad is not None
        if not finite:
            weight.grad.fill_(math.inf)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        mine.update(finite=finite)
        assert mine.scale == theirs.get_scale()


def test_overflow_skips_the_step_and_is_counted(toy: dict[str, Any], large_scale: None) -> None:
    config = TrainConfig(**toy, precision="float16", steps=8, checkpoint_every=100)
    trainer = Trainer(config)
    before = {name: tensor.clone() for name, tensor in trainer.state.tensors()}
    trainer.update()
    assert trainer.state.step == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.state.tensors())
    result = train(config)
    lines = log(config.out)
    skipped = [line["skipped"] for line in lines]
    assert result.step == 8 and skipped[0] == 1 and skipped[-1] == 0
    assert skipped == sorted(skipped, reverse=True)
    assert [line["loss"] is None for line in lines] == [bool(s) for s in skipped]
    assert lines[-1]["loss_scale"] == TOO_LARGE / 2 ** sum(skipped)


def test_means_are_those_of_the_steps_that_were_made(toy: dict[str, Any], large_scale: None) -> None:
    train(TrainConfig(**{**toy, "log_every": 8}, precision="float16", steps=8))
    (line,) = log(toy["out"])
    assert 0 < line["skipped"] < 8
    assert math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])


def test_float16_follows_float32(toy: dict[str, Any]) -> None:
    curves = []
    for name in ("float32", "float16"):
        train(TrainConfig(**{**toy, "out": toy["out"] / name}, precision=name, steps=12))  # pyright: ignore
        curves.append(torch.tensor([[line["loss"], line["grad_norm"]] for line in log(toy["out"] / name)]))
    torch.testing.assert_close(*curves, rtol=0.05, atol=0.01)


def test_a_scale_that_collapses_names_the_step(toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdiff.training.loop.LossScale", lambda: LossScale(2.0))
    config = TrainConfig(**toy, precision="float16", steps=20)
    trainer = Trainer(config)
    next(trainer.state.model.parameters()).data[:] = math.nan
    with pytest.raises(FastdiffError, match="loss scale of float16 fell below 1 at step 2"):
        trainer.run()
    assert not checkpoints(config.out)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_resumes_bit_for_bit(toy: dict[str, Any], large_scale: None, name: Precision) -> None:
    options = {**toy, "precision": name, "ema": (0.9, 0.99), "microbatch": 1, "flip": True}
    whole, stopped = ({**options, "out": toy["out"] / kind} for kind in ("whole", "stopped"))
    train(TrainConfig(**whole, steps=7))
    train(TrainConfig(**stopped, steps=4))
    train(TrainConfig(**stopped, steps=7))
    for file in ("checkpoints/step-00000007.safetensors", "model.safetensors", "model-ema-0.99.safetensors"):
        expected, resumed = load_file(whole["out"] / file), load_file(stopped["out"] / file)
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[key], resumed[key]) for key in expected), file
    assert scale_of(whole["out"]) == scale_of(stopped["out"])
    assert (scale_of(whole["out"]) is not None) == (name == "float16")


def scale_of(out: Path) -> Any:
    with safe_open(checkpoints(out)[-1], framework="pt") as file:
        return json.loads(file.metadata()["fastdiff.training"])["scale"]
