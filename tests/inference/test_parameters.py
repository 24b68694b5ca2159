"""The parameters of an optimized model: the same bits, changes noticed, memory freed and given back, copies."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from small_models import (
    DTYPES,
    assert_close,
    assert_same_weights,
    inputs_of,
    run,
    small_model,
    storage_of,
    weights_of,
)
from torch import nn

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet


@pytest.mark.parametrize("free_weights", [False, True], ids=["kept", "freed"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_state_dict_is_the_same_to_the_bit(dtype: torch.dtype, free_weights: bool) -> None:
    model = small_model().to(dtype)
    weights = weights_of(model)
    handle = fastdiff.optimize(model, free_weights=free_weights)
    assert_same_weights(model, weights)
    run(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())
    handle.restore()
    assert_same_weights(model, weights)
    assert "denoise" not in model.__dict__
    handle.restore()  # a second call does nothing


def test_freed_weights_take_no_memory_until_they_are_restored() -> None:
    model = small_model()
    weights, before, wanted = weights_of(model), storage_of(model), run(model)
    handle = fastdiff.optimize(model, free_weights=True)
    assert storage_of(model) < 0.2 * before
    assert handle.freed_bytes == before - storage_of(model)
    assert handle.extra_bytes == handle.packed_bytes - handle.freed_bytes
    assert_close(run(model), wanted)
    handle.restore()
    assert storage_of(model) == before
    assert_same_weights(model, weights)
    assert handle.freed_bytes == 0
    assert torch.equal(run(model), wanted)


def test_bytes_and_repr() -> None:
    model = small_model(resblock_updown=False)
    handle = fastdiff.optimize(model, torch.bfloat16)
    assert handle.freed_bytes == 0 and handle.extra_bytes == handle.packed_bytes > 0
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv1d)) and m.stride[0] == 1]
    text = f"UNet optimized for the CPU: {len(convolutions)} layers in bfloat16, {handle.extra_bytes / 2**20:.1f} MiB"
    assert repr(handle).startswith(text)


def test_loading_into_freed_weights() -> None:
    model, other = small_model(), small_model()
    for p in other.parameters():
        p.data = p.data * 1.5
    handle = fastdiff.optimize(model, free_weights=True)
    model.load_state_dict(other.state_dict())
    assert_close(run(model), run(other))
    assert handle.freed_bytes == 0
    handle.restore()
    assert_same_weights(model, weights_of(other))


def _in_place(model: UNet) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)


def _in_inference_mode(model: UNet) -> None:
    with torch.inference_mode():
        for p in model.parameters():
            p.mul_(1.5)


def _optimizer(model: UNet, kind: Any, **options: Any) -> None:
    optimizer = kind(model.parameters(), lr=0.02, **options)
    model(**inputs_of(model)).square().mean().backward()
    optimizer.step()


def _assigned(model: UNet) -> None:
    model.load_state_dict({k: 1.5 * v for k, v in model.state_dict().items()}, assign=True)


def _replaced(model: UNet) -> None:
    layer: Any = model.out[2]
    layer.weight = nn.Parameter(2 * layer.weight.detach())


CHANGES = {
    "in_place": _in_place,
    "in_inference_mode": _in_inference_mode,
    "sgd": lambda model: _optimizer(model, torch.optim.SGD),
    "adam_foreach": lambda model: _optimizer(model, torch.optim.Adam, foreach=True),
    "adam_fused": lambda model: _optimizer(model, torch.optim.Adam, fused=True),
    "load_state_dict": lambda m: m.load_state_dict({k: 1.5 * v for k, v in m.state_dict().items()}),
    "load_state_dict_assign": _assigned,
    "replaced": _replaced,
}


@pytest.mark.parametrize("options", [{}, dict(resblock_updown=False)], ids=["", "strided"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_weight_is_noticed(change: Any, options: dict[str, Any]) -> None:
    model = small_model(**options)
    handle = fastdiff.optimize(model)
    before = run(model)
    change(model)
    got = run(model)
    handle.restore()
    wanted = run(model)
    assert (wanted - before).abs().max() > 0.01
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)  # larger weights


@pytest.mark.parametrize("free_weights", [False, True], ids=["kept", "freed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bf16", "f16", "f64"])
def test_another_dtype_is_noticed(dtype: torch.dtype, free_weights: bool) -> None:
    model = small_model()
    converted = copy.deepcopy(model).to(dtype)
    handle = fastdiff.optimize(model, free_weights=free_weights)
    model.to(dtype)
    assert_same_weights(model, weights_of(converted))
    got = run(model)
    fastdiff.optimize(converted, torch.float32)
    assert torch.equal(got, run(converted))
    handle.restore()
    assert_same_weights(model.float(), weights_of(converted))


@pytest.mark.parametrize("options", [{}, dict(resblock_updown=False)], ids=["", "strided"])
@pytest.mark.parametrize("free_weights", [False, True], ids=["kept", "freed"])
def test_deepcopy_is_independent(free_weights: bool, options: dict[str, Any]) -> None:
    model = small_model(**options)
    weights = weights_of(model)
    handle = fastdiff.optimize(model, free_weights=free_weights)
    wanted = run(model)
    other = copy.deepcopy(model)
    assert torch.equal(run(other), wanted)
    assert_same_weights(other, weights)
    other.load_state_dict({k: 1.5 * v for k, v in weights.items()})
    assert (run(other) - wanted).abs().max() > 0.01
    assert torch.equal(run(model), wanted)
    handle.restore()
    assert_same_weights(model, weights)
    assert_same_weights(other, {k: 1.5 * v for k, v in weights.items()})


def test_a_whole_model_can_be_pickled_unless_it_is_freed() -> None:
    model, file = small_model(resblock_updown=False), io.BytesIO()
    handle = fastdiff.optimize(model)
    wanted = run(model)
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(run(torch.load(file, weights_only=False)), wanted)
    handle.restore()
    fastdiff.optimize(model, free_weights=True)
    with pytest.raises(FastdiffError, match=r"restore\(\) it before pickling, or save its state_dict\(\)"):
        torch.save(model, io.BytesIO())
