"""What the backward computes again: the same gradients to the bit, less memory, and nothing expensive."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from adm_formulas import random_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.models import trunk
from fastdiff.nn import Dropout, GroupNormSiLU, recomputing
from fastdiff.nn.layers import upsample_nearest

CONFIG = replace(tiny.UNET, num_heads=2, num_classes=4, dropout=0.5)
OPTIONS: dict[str, dict[str, Any]] = {
    "adm": {},
    "ddpm": {"use_scale_shift_norm": False, "resblock_updown": False, "dropout": 0.0},
    "pooling": {"resblock_updown": False, "conv_resample": False},
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Watched(TorchDispatchMode):
    """Counts operators, and knows which of their results are still in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.name()] += 1
        out = func(*args, **(kwargs or {}))
        for t in [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]:
            storage = t.untyped_storage()
            self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def held(self) -> int:
        """Bytes."""
        return sum(size for reference, size in self._made.values() if not reference.expired())


def _model(recompute: str, layout: str = "contiguous", **options: Any) -> Any:
    model = random_model(replace(CONFIG, **options), torch.float32, std=0.08).train()
    model.recompute = recompute
    return model.to(memory_format=LAYOUTS[layout])


def _loss(model: Any, layout: str = "contiguous", autocast: bool = False) -> Tensor:
    """Weighs all outputs differently; the same random numbers every time."""
    torch.manual_seed(4)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=LAYOUTS[layout])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x, torch.tensor([20, 700]), torch.tensor([3, 1]))
    return (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum()


def _gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def _assert_same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert all(torch.equal(got[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", [None, "eager"], ids=["fastdiff", "eager"])
def test_gradients_are_the_same_to_the_bit(layout: str, options: str, backend: str | None) -> None:
    expected: dict[str, Tensor] = {}
    for recompute in ("none", "selective", "full"):
        model = _model(recompute, layout, **OPTIONS[options])
        with use_backend(backend or "cpu"):
            _loss(model, layout).backward()
        expected = expected or _gradients(model)
        _assert_same_bits(_gradients(model), expected)


def test_gradients_under_autocast() -> None:
    none, selective = _model("none", "channels_last"), _model("selective", "channels_last")
    for model in (none, selective):
        _loss(model, "channels_last", autocast=True).backward()
    _assert_same_bits(_gradients(selective), _gradients(none))


@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_expensive_is_computed_again(options: str) -> None:
    calls = {}
    for recompute in ("none", "selective", "full"):
        model = _model(recompute, **OPTIONS[options])
        with Watched() as watched:
            _loss(model).backward()
        calls[recompute] = watched.calls
    none, selective, full = calls["none"], calls["selective"], calls["full"]
    again = selective - none
    expensive = ("aten::convolution", "aten::addmm", "aten::mm", "fastdiff::attention")
    assert not [name for name in again if name in expensive]
    assert all((full - none)[name] for name in ("aten::convolution", "fastdiff::attention"))
    norms = none["fastdiff::group_norm_silu"]  # once more, and again where what is halved was a norm's result
    halved = 2 if options == "adm" else 0
    assert again["fastdiff::group_norm_silu"] in (norms, norms + halved // 2)
    assert not [name for name in again if name.endswith("_backward")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_less_is_held_for_the_backward(layout: str, options: str) -> None:
    """By what the norms give, at least."""
    held, results = {}, []
    for recompute in ("none", "selective", "full"):
        model = _model(recompute, layout, **OPTIONS[options])
        norms = [m for m in model.modules() if isinstance(m, GroupNormSiLU)] if recompute == "none" else []
        for norm in norms:
            norm.register_forward_hook(lambda _, args, result: results.append(result.nbytes))
        with Watched() as watched:
            loss = _loss(model, layout)
            held[recompute] = watched.held()
            loss.backward()
    assert held["none"] - held["selective"] >= sum(results)
    assert held["full"] < held["selective"]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_without_gradients_nothing_is_different(recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(recompute).eval()
    expected = _loss(_model("none").eval())
    monkeypatch.setattr(trunk, "recomputing", None)
    monkeypatch.setattr(trunk, "checkpoint", None)
    with torch.no_grad():
        assert torch.equal(_loss(model), expected)
    with torch.inference_mode():
        assert torch.equal(_loss(model), expected)


def test_in_eval_mode_dropout_stays_off() -> None:
    none, selective = _model("none").eval(), _model("selective").eval()
    for model in (none, selective):
        _loss(model).backward()
    _assert_same_bits(_gradients(selective), _gradients(none))


def test_a_graph_may_be_used_twice() -> None:
    model = _model("selective")
    loss = _loss(model)
    once = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    twice = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("recompute", ["selective", pytest.param("full", marks=pytest.mark.proof)])
def test_compiles_as_one_graph(recompute: str) -> None:
    model = _model(recompute)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    _loss(compiled).backward()
    expected = _model("none")
    _loss(expected).backward()
    for name, gradient in _gradients(expected).items():
        torch.testing.assert_close(_gradients(model)[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_classifier() -> None:
    config = replace(tiny.CLASSIFIER, num_heads=2, num_outputs=7)
    gradients = []
    for recompute in ("none", "selective"):
        model = random_model(config, torch.float32).train()
        model.recompute = recompute
        model(torch.ones(2, 3, 8, 8), torch.tensor([20, 700])).square().sum().backward()
        gradients.append(_gradients(model))
    _assert_same_bits(*gradients)


def test_dropout_of_gradients_in_another_layout() -> None:
    x = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    weighting = torch.randn(2, 8, 3, 3)
    results = []
    for run in (lambda f, x: f(x), recomputing):
        torch.manual_seed(1)
        y = run(nn.Sequential(Dropout(0.3), nn.Identity()), x)
        results.append((y, *torch.autograd.grad(y, x, weighting)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_views_of_what_is_made_again() -> None:
    """Views of a recomputed norm's result, which is given to another recomputed function and to a product."""
    norm, last = GroupNormSiLU(32), nn.Conv2d(16, 4, 1)
    x = torch.randn(2, 32, 4, 4, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        halves = norm(x).chunk(2, dim=1)
        return last(upsample_nearest(halves[1])) * halves[0].sum()

    plain = torch.autograd.grad(block(x).square().sum(), [x, *norm.parameters(), *last.parameters()])
    again = torch.autograd.grad(
        recomputing(block, x).square().sum(), [x, *norm.parameters(), *last.parameters()]
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_empty_batch() -> None:
    x = torch.zeros(0, 3, 8, 8)
    model = _model("selective")
    model(x, torch.zeros(0), torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert not any(gradient.any() for gradient in _gradients(model).values())


def test_unknown_names() -> None:
    with pytest.raises(FastdiffError, match="recompute must be one of none, selective, full, got 'some'"):
        _loss(_model("some"))
