"""A sampler changes nothing of the model: threads with other precisions, in train mode, while training goes on."""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from test_api import SmallModel
from torch import Tensor, nn

import fastdiff
from fastdiff.models import build_model
from fastdiff.sampling.view import in_eval_mode, view_in_eval_mode

CONFIG = replace(tiny.UNET, dropout=0.5)
OPTIONS: dict[str, Any] = dict(steps=3, seed=1, diffusion=fastdiff.DiffusionConfig(), progress=False)


def unet() -> Any:
    model, generator = build_model(CONFIG), torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5
    return model


def modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


@pytest.mark.parametrize(
    "how", ["plain", "optimized here", "optimized before", "accelerated", "compiled", "bf16"]
)
def test_a_model_in_train_mode_is_sampled_without_dropout_and_stays_in_it(how: str) -> None:
    model = unet().eval()
    options = (
        OPTIONS | {"optimize": how == "optimized here"} | ({"precision": "bfloat16"} if how == "bf16" else {})
    )
    wanted = fastdiff.sample(model, 2, **options)
    if how == "optimized before":
        fastdiff.optimize(model)
    if how == "accelerated":
        for layer in model.modules():
            if type(layer).__name__ == "ResBlock":
                layer.forward = functools.partial(type(layer).forward, layer)
    model.train()
    model.get_submodule("middle_block.1").eval()
    before = modes(model)
    used: Any = torch.compile(model, backend="eager") if how == "compiled" else model
    if how == "compiled":
        model.train()
        before, options = modes(model), options | {"shape": (3, 8, 8)}
    got = fastdiff.sample(used, 2, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    assert modes(model) == before


def test_the_model_is_not_touched_while_it_is_sampled() -> None:
    """A frozen part of a model in train mode is put into train mode by model.train(): nobody may call that."""
    model, seen = SmallModel().train(), []
    model.dropout.eval()
    model.conv.register_forward_hook(lambda *_: seen.append(modes(model)))
    fastdiff.sample(model, 2, steps=3, progress=False)
    assert len(seen) == 3
    assert all(now == modes(model) for now in seen)
    assert model.training and not model.dropout.training


def test_threads_with_other_precisions_and_modes() -> None:
    model = unet().train()
    ways: list[dict[str, Any]] = [
        {},
        {"precision": "bfloat16"},
        {"optimize": False},
        {"precision": "adm-fp16"},
    ]
    wanted = [fastdiff.sample(model, 2, **OPTIONS, **way) for way in ways]
    results: list[tuple[int, Tensor]] = []
    failures: list[BaseException] = []

    def draw(i: int) -> None:
        try:
            for _ in range(3):
                results.append((i, fastdiff.sample(model, 2, **OPTIONS, **ways[i])))
        except BaseException as error:
            failures.append(error)

    def train() -> None:
        x, t = torch.randn(1, 3, 8, 8), torch.zeros(1)
        for _ in range(5):
            assert all(m.training for m in model.modules())
            torch.autograd.grad(model(x, t).square().mean(), list(model.parameters()))

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(len(ways))]
    for thread in threads:
        thread.start()
    train()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(results) == 12
    for i, result in results:
        torch.testing.assert_close(result, wanted[i], rtol=1e-4, atol=1e-4)


def test_a_view_shares_parameters_buffers_and_hooks() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    view, calls = view_in_eval_mode(model), []
    assert modes(model) == [True] * 3 and modes(view) == [False] * 3
    assert all(a is b for a, b in zip(model.parameters(), view.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), view.buffers(), strict=True))
    model[0].register_forward_hook(lambda *_: calls.append(1))
    model[0].weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(view(torch.ones(2, 3)), torch.tensor([1.0, 2.0, 3.0]))
    assert calls == [1]
    assert view_in_eval_mode(model.eval()) is model


def test_what_cannot_be_seen_so_is_switched_by_the_last_who_leaves() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).train()
    plain = model.forward
    model.forward = lambda x: plain(x)  # who knows what a closure holds
    assert view_in_eval_mode(model) is model
    with in_eval_mode(model):
        with in_eval_mode(model):
            assert not model.training
        assert not model.training
    assert modes(model) == [True, True]


def test_a_precision_copy_sees_what_becomes_of_its_model() -> None:
    model = unet().eval()
    with fastdiff.Sampler(model, precision="adm-fp16", **_fields()) as sampler:
        for change in (_write, _exchange):
            before = sampler(2, seed=1, progress=False)
            change(model)
            got = sampler(2, seed=1, progress=False)
            with fastdiff.Sampler(model, precision="adm-fp16", **_fields()) as anew:
                wanted = anew(2, seed=1, progress=False)
            assert (got - before).abs().max() > 1e-3
            assert torch.equal(got, wanted)


def _fields() -> dict[str, Any]:
    return {name: OPTIONS[name] for name in ("steps", "diffusion")}


def _write(model: Any) -> None:
    model.get_parameter("middle_block.0.in_layers.2.weight").data[3] *= -3


def _exchange(model: Any) -> None:
    model.out[2] = nn.Sequential(model.out[2], nn.Tanh())
