"""AdamWEMA: torch's AdamW and moving averages in one; its state goes on bit for bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from fastdiff.errors import FastdiffError
from fastdiff.training.optimizer import AdamWEMA, clip_factor

RATES = (0.9, 0.99)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 5))
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def backward(model: nn.Module, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    model.zero_grad()
    model(torch.randn(6, 3, 4, 4, generator=g)).square().mean().mul(100).backward()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def run(model: nn.Module, optimizer: AdamWEMA, steps: range) -> None:
    for step in steps:
        backward(model, step)
        optimizer.step(grad_factor=clip_factor(get_total_norm(gradients(model)), 1.0))


def everything(model: nn.Module, optimizer: AdamWEMA) -> list[Tensor]:
    return [*model.parameters(), *(t for p in model.parameters() for t in optimizer.state[p].values())]


def test_is_torchs_adamw_with_clipping_and_averages() -> None:
    mine, theirs = network(), network()
    optimizer = AdamWEMA(mine.parameters(), 1e-2, weight_decay=0.1, ema_rates=RATES)
    reference = torch.optim.AdamW(theirs.parameters(), 1e-2, weight_decay=0.1)
    averages = [[p.detach().clone() for p in theirs.parameters()] for _ in RATES]
    for step in range(30):
        run(mine, optimizer, range(step, step + 1))
        backward(theirs, step)
        clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        for rate, average in zip(RATES, averages, strict=True):
            torch._foreach_lerp_(average, list(theirs.parameters()), 1 - rate)
    torch.testing.assert_close(list(mine.parameters()), list(theirs.parameters()), rtol=1e-4, atol=1e-5)
    for i, average in enumerate(averages):
        torch.testing.assert_close(optimizer.averages(i), average, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contiguous", [False, True], ids=["as-saved", "contiguous"])
def test_resumes_bit_for_bit(contiguous: bool) -> None:
    """Through a file, also one that has lost the memory layouts."""
    model = network()
    optimizer = AdamWEMA(model.parameters(), 1e-2, ema_rates=RATES)
    run(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    run(model, optimizer, range(5, 12))

    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    if contiguous:
        state["state"] = {i: {k: t.contiguous() for k, t in s.items()} for i, s in state["state"].items()}
    resumed = network()
    resumed.load_state_dict(weights)
    other = AdamWEMA(resumed.parameters(), 1e-2, ema_rates=RATES)
    other.load_state_dict(state)
    run(resumed, other, range(5, 12))
    pairs = zip(everything(model, optimizer), everything(resumed, other), strict=True)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_state_of_torchs_adamw_loads() -> None:
    model = network()
    theirs = torch.optim.AdamW(model.parameters(), 1e-2)
    backward(model, 0)
    theirs.step()
    twin = copy.deepcopy(model)
    mine = AdamWEMA(twin.parameters(), 1e-2, ema_rates=(0.5,))
    mine.load_state_dict(theirs.state_dict())
    for m, o in ((model, theirs), (twin, mine)):
        backward(m, 1)
        o.step()
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=1e-6, atol=1e-7)
    assert all(mine.state[p]["step"] == 2 for p in twin.parameters())


def test_averages_live_in_the_tensors_that_were_given() -> None:
    model, second = network(), network().requires_grad_(False)
    optimizer = AdamWEMA(model.parameters(), 1e-2, ema_rates=(0.9,))
    optimizer.use_averages(0, second.parameters())
    run(model, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    expected = [p.clone() for p in second.parameters()]
    run(model, optimizer, range(3, 5))
    assert not torch.equal(expected[0], next(second.parameters()))
    optimizer.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, second.parameters(), strict=True))
    with pytest.raises(FastdiffError, match="averages must be 6 tensors shaped like the parameters, got 1"):
        optimizer.use_averages(0, [torch.zeros(3)])


def test_averages_follow_parameters_without_gradients() -> None:
    model = network()
    optimizer = AdamWEMA(model.parameters(), 1e-2, ema_rates=(0.5,))
    first = next(model.parameters())
    before = first.detach().clone()
    optimizer.averages()
    with torch.no_grad():
        first.add_(1.0)
    backward(model, 0)
    first.grad = None
    optimizer.step()
    torch.testing.assert_close(optimizer.averages()[0], before + 0.5)
    torch.testing.assert_close(first.detach(), before + 1.0)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"ema_rates": (2.0,)}], ids=str)
def test_bad_numbers(options: dict[str, Any]) -> None:
    model = network()
    backward(model, 0)
    with pytest.raises(FastdiffError, match="adamw_ema: "):
        AdamWEMA(model.parameters(), **options).step()
