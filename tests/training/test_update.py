"""One step: parts of a batch add up to the whole, and every average is AdamW's with its own decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer
from fastdiff.training.optimizer import EMA


@pytest.mark.parametrize("microbatch", [1, 3, 4, 100])
def test_parts_add_up_to_the_batch(toy: dict[str, Any], no_dropout: None, microbatch: int) -> None:
    """Gradients, and what is measured, also with weights that differ."""
    found = []
    for size in (0, microbatch):
        trainer = Trainer(TrainConfig(**toy, microbatch=size, timesteps="loss-second-moment"))
        batch = trainer._batches.draw(0, trainer.state.times)
        batch.weight.copy_(torch.linspace(0.5, 2, 8))
        measures = trainer.update._backward(batch)
        found.append([measures, *(p.grad for p in trainer.state.model.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_loss_and_norm_are_the_whole_batchs(toy: dict[str, Any], no_dropout: None) -> None:
    rows = [Trainer(TrainConfig(**toy, microbatch=size)).update() for size in (0, 3)]
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-5, atol=1e-7)


def test_every_average_is_saved_under_its_decay(toy: dict[str, Any]) -> None:
    rates = (0.5, 0.9, 0.999)
    config = TrainConfig(**toy, ema=rates, steps=12)
    trainer = Trainer(config)
    expected = [EMA(trainer.state.model, rate) for rate in rates]
    for step in range(12):
        trainer.update()
        for ema in expected:
            ema.update(trainer.state.model, step)
    result = train(config)
    names = ["model.safetensors", "model-ema-0.9.safetensors", "model-ema-0.999.safetensors"]
    assert result.model == config.out / names[0]
    assert sorted(names) == sorted(path.name for path in config.out.glob("*.safetensors"))
    for name, ema in zip(names, expected, strict=True):
        found = fastdiff.load(config.out / name)
        torch.testing.assert_close(found.state_dict(), ema.model.state_dict(), rtol=1e-4, atol=1e-5)
    first, second = (dict(fastdiff.load(config.out / name).named_parameters()) for name in names[:2])
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_the_averaged_model_shares_memory_with_the_averages(toy: dict[str, Any]) -> None:
    trainer = Trainer(TrainConfig(**toy))
    weights = list(trainer.state.averaged().parameters())
    before = [weight.detach().clone() for weight in weights]
    trainer.update()
    assert not all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert not any(weight.requires_grad for weight in weights)
