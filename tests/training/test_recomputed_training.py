"""Recomputation saves memory and changes no number, so that a run may take it up when it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer


def test_a_run_may_change_what_it_recomputes(toy_config: TrainConfig, tmp_path: Path) -> None:
    whole, changed = (replace(toy_config, out=tmp_path / name) for name in ("whole", "changed"))
    train(whole)
    train(replace(changed, steps=3, recompute="selective"))
    train(replace(changed, recompute="full"))
    name = "checkpoints/step-00000006.safetensors"
    expected, got = load_file(whole.out / name), load_file(changed.out / name)
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_the_model_is_told(toy_config: TrainConfig) -> None:
    assert Trainer(toy_config).state.model.recompute == "none"
    assert Trainer(replace(toy_config, recompute="selective")).state.model.recompute == "selective"
