"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from fastdiff.training.optimizer import EMA


def test_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 4.0)
    ema = EMA(model, decay=0.9)
    expected = 4.0
    for step in range(200):
        nn.init.constant_(model.weight, float(step % 7))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 7)
    torch.testing.assert_close(ema.model.weight.item(), expected, rtol=1e-5, atol=0)


def test_average_is_apart_from_the_model() -> None:
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.5)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    model(torch.randn(8, 2))
    assert (ema.model.running_mean == 0).all()
    ema.update(model, 0)
    assert torch.equal(ema.model.running_mean, model.running_mean)  # pyright: ignore[reportArgumentType]
