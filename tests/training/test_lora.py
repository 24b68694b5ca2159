"""--lora: adapters that are trained alone, merged into the model that is saved, and a small file of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

import fastdiff
from fastdiff.cli import main
from fastdiff.errors import FastdiffError
from fastdiff.models.lora import add_adapters, merge, split
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer


@pytest.fixture
def base(toy: dict[str, Any], tmp_path: Path) -> Path:
    """A model of the toy run, whose last layers are not zero."""
    train(TrainConfig(**{**toy, "out": tmp_path / "base"}, steps=3))
    return tmp_path / "base" / "model.safetensors"


@pytest.fixture
def options(toy: dict[str, Any], base: Path) -> dict[str, Any]:
    return {**toy, "init": str(base), "lora": 2, "warmup": 0, "lr": 0.01, "checkpoint_every": 2, "threads": 1}


def test_adapters_are_low_rank_products() -> None:
    """A 3x3 convolution by hand: A to two channels, B of 1 x 1 back to all."""
    layer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.Linear(40, 40))
    x = torch.randn(2, 6, 5, 5)
    before = layer[0](x)
    add_adapters(layer, 2)
    torch.testing.assert_close(layer[0](x), before, rtol=0, atol=0)  # B is zero
    adapter: Any = layer[0].parametrizations["weight"][0]  # pyright: ignore
    assert adapter.A.shape == (2, 6, 3, 3) and adapter.B.shape == (8, 2, 1, 1)
    adapter.B.data.normal_()
    narrow = nn.functional.conv2d(x, adapter.A, padding=1)
    expected = before + nn.functional.conv2d(narrow, adapter.B)
    torch.testing.assert_close(layer[0](x), expected, rtol=1e-4, atol=1e-5)

    merged = merge(layer.state_dict())
    assert set(merged) == {"0.bias", "0.weight", "1.bias", "1.weight"}
    torch.testing.assert_close(
        nn.functional.conv2d(x, merged["0.weight"], merged["0.bias"], padding=1),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    assert {"0.lora_A.weight", "0.lora_B.weight"} < set(split(layer.state_dict()))


def test_only_adapters_learn(options: dict[str, Any], base: Path) -> None:
    trainer = Trainer(TrainConfig(**options))
    model, before = trainer.state.model, fastdiff.load(base).state_dict()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning and all(name.endswith((".weight.0.A", ".weight.0.B")) for name in learning)
    assert {p for p in trainer.state.optimizer.state} == {p for p in model.parameters() if p.requires_grad}
    for _ in range(3):
        trainer.update()
    state = model.state_dict()
    for name, value in before.items():
        original = name.replace(".weight", ".parametrizations.weight.original")
        assert torch.equal(state.get(name, state.get(original)), value), name
    after = trainer.state.averaged().state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "middle_block.1.qkv.weight" in changed and "time_embed.0.weight" in changed
    for name in changed:
        difference = (after[name] - before[name]).flatten(1)
        assert torch.linalg.matrix_rank(difference, rtol=1e-3) <= 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_gradients_are_those_of_the_merged_weights(
    options: dict[str, Any], no_dropout: None, recompute: Any, precision: Any
) -> None:
    """dA = B^T dW and dB = dW A^T, with dW of a run that trains all weights."""
    trainer = Trainer(TrainConfig(**options, recompute=recompute, precision=precision))
    for _ in range(2):
        trainer.update()  # so that B is not zero
    batch = trainer._batches.draw(7, trainer.state.times)
    plain = Trainer(TrainConfig(**{**options, "lora": 0}, precision=precision))
    plain.state.model.load_state_dict(merge(trainer.state.model.state_dict()))
    trainer.state.optimizer.zero_grad()
    measures = [one.update._backward(batch) for one in (trainer, plain)]
    close = {"rtol": 1e-3, "atol": 1e-5} if precision == "float32" else {"rtol": 0.1, "atol": 1e-2}
    torch.testing.assert_close(*measures, **close)
    whole, count = dict(plain.state.model.named_parameters()), 0
    for name, layer in trainer.state.model.named_modules():
        if isinstance(layer, nn.Module) and hasattr(layer, "parametrizations"):
            adapter: Any = layer.parametrizations["weight"][0]  # pyright: ignore
            grad = whole[f"{name}.weight"].grad.flatten(1)  # pyright: ignore
            a, b = adapter.A.flatten(1), adapter.B.flatten(1)
            torch.testing.assert_close(adapter.A.grad.flatten(1), b.T @ grad, **close)
            torch.testing.assert_close(adapter.B.grad.flatten(1), grad @ a.T, **close)
            count += 1
    assert count > 10


def test_the_command_line_writes_a_model_and_a_small_file(
    toy: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    given = ["--data", str(toy["data"]), "--preset", toy["preset"], "--out", str(toy["out"]), "--lr", "0.01"]
    given += ["--init", options["init"], "--lora", "1", "--batch-size", "8", "--steps", "4", "--warmup", "0"]
    assert main(["train", *given, "--device", "cpu", "--no-progress"]) == 0
    merged, small = toy["out"] / "model.safetensors", toy["out"] / "lora.safetensors"
    assert small.stat().st_size < 0.35 * merged.stat().st_size
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in load_file(small))
    expected = fastdiff.load(merged)
    for model in (fastdiff.load(small), fastdiff.load(small, base=options["init"])):
        assert model.config == expected.config and model.diffusion == expected.diffusion
        torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    arrays = []
    for file in (merged, small):
        out = tmp_path / f"samples-{file.stem}"
        chosen = ["--checkpoint", str(file), "--n", "2", "--steps", "3", "--device", "cpu"]
        assert main(["sample", *chosen, "--no-progress", "--out", str(out)]) == 0
        arrays.append(np.load(out / "samples.npz")["arr_0"])
    assert np.array_equal(*arrays)


def test_layers_for_other_classes_are_trained_whole(
    options: dict[str, Any], toy: dict[str, Any], base: Path
) -> None:
    held = np.load(toy["data"])
    np.savez(toy["data"], images=held["images"], labels=np.arange(40) % 4)
    model = train(TrainConfig(**options, num_classes=4, steps=3)).model
    assert model is not None
    small = load_file(toy["out"] / "lora.safetensors")
    assert small["label_emb.weight"].shape[0] == 5
    assert [name for name in small if ".lora_" not in name] == ["label_emb.weight"]
    again = fastdiff.load(toy["out"] / "lora.safetensors")
    torch.testing.assert_close(again.state_dict(), fastdiff.load(model).state_dict(), rtol=0, atol=0)


def test_a_resumed_run_is_the_unbroken_one(options: dict[str, Any], tmp_path: Path) -> None:
    options["ema"] = (0.9, 0.5)
    train(TrainConfig(**{**options, "out": tmp_path / "whole"}, steps=5))
    for steps in (2, 5):
        train(TrainConfig(**{**options, "out": tmp_path / "parts"}, steps=steps))
    for name in ("model.safetensors", "model-ema-0.5.safetensors", "lora.safetensors"):
        expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_training_checkpoint_is_a_model(options: dict[str, Any]) -> None:
    train(TrainConfig(**options, steps=4))
    expected = fastdiff.load(options["out"] / "model.safetensors")
    model = fastdiff.load(options["out"] / "checkpoints" / "step-00000004.safetensors")
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    raw = fastdiff.load(options["out"] / "checkpoints" / "step-00000004.safetensors", weights="raw")
    assert not torch.equal(raw.time_embed[0].weight, model.time_embed[0].weight)


def test_errors(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    for changes in ({"init": None}, {"strategy": "fsdp"}, {"lora": -1}):
        with pytest.raises(FastdiffError, match="give --init with --lora|lora must be at least 0"):
            TrainConfig(**{**options, **changes})
    train(TrainConfig(**options, steps=1))
    with pytest.raises(FastdiffError, match="is no file of low-rank adapters; leave out base"):
        fastdiff.load(base, base=base)
    small = options["out"] / "lora.safetensors"
    fastdiff.save(tiny.build(tiny.GRAY), tmp_path / "other.safetensors")
    with pytest.raises(FastdiffError, match="does not fit"):
        fastdiff.load(small, base="fashion-mnist")
    shutil.move(base, tmp_path / "moved.safetensors")
    with pytest.raises(FastdiffError, match=r"no checkpoint at .*base.model\.safetensors"):
        fastdiff.load(small)
    fastdiff.load(small, base=tmp_path / "moved.safetensors")
