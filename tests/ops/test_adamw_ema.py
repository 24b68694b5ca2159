"""adamw_ema against torch.optim.AdamW over many steps, layouts, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import backends
import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import AdamWHyper, adamw_ema
from fastdiff.ops.adamw_ema import adamw_ema_op

SHAPES = ((8, 4, 3, 3), (33,), (16, 8, 1, 1), (5, 7))
each_kernel = backends.each_kernel("adamw_ema")


def tensors(seed: int, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=g) for shape in SHAPES]
    return [t.to(memory_format=layout) if t.dim() == 4 else t for t in made]


def arguments(layout: torch.memory_format = torch.contiguous_format) -> dict[str, Any]:
    params = tensors(0, layout)
    return {
        "params": params,
        "grads": tensors(1, layout),
        "exp_avg": [torch.zeros_like(p) for p in params],
        "exp_avg_sq": [torch.zeros_like(p) for p in params],
        "steps": [torch.zeros(()) for _ in params],
        "hyper": AdamWHyper(lr=1e-2, weight_decay=0.1, decays=(0.9,)),
        "emas": [[p.clone() for p in params]],
    }


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU, Backend.EAGER], ids=lambda b: b.value)
def test_two_hundred_steps_are_those_of_torch(backend: Backend) -> None:
    mine = arguments()
    params = [p.clone().requires_grad_() for p in mine["params"]]
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, 1e-2, weight_decay=0.1, foreach=False)
    for step in range(200):
        mine["grads"] = tensors(step + 1)
        for p, g in zip(params, mine["grads"], strict=True):
            p.grad = g * 0.25
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - 0.9)
        with use_backend(backend):
            adamw_ema(**mine, grad_factor=torch.tensor(0.25))
    for i, p in enumerate(params):
        torch.testing.assert_close(mine["params"][i], p.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine["emas"][0][i], averages[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine["exp_avg_sq"][i], optimizer.state[p]["exp_avg_sq"], rtol=1e-5, atol=0)
        assert mine["steps"][i] == 200


@each_kernel
def test_layouts_give_the_same_bits(backend: Backend) -> None:
    """Also where the gradient lies otherwise than its parameter."""
    one, two, three = arguments(), arguments(torch.channels_last), arguments(torch.channels_last)
    three["grads"] = tensors(1)
    with use_backend(backend):
        for call in (one, two, three):
            adamw_ema(**call)
    for a, b, c in zip(one["params"], two["params"], three["params"], strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
        assert b.stride() == c.stride()


@each_kernel
def test_parts_of_larger_memory(backend: Backend) -> None:
    """Addresses that are aligned to nothing; the neighbours stay."""
    results = []
    for offset in (0, 1, 3):
        mine = arguments()
        for name in ("params", "exp_avg", "exp_avg_sq"):
            memory = [torch.full((p.numel() + 8,), 7.0) for p in mine[name]]
            views = [
                m[offset : offset + p.numel()].view(p.shape) for m, p in zip(memory, mine[name], strict=True)
            ]
            for view, p in zip(views, mine[name], strict=True):
                view.copy_(p)
            mine[name] = views
            for m, p in zip(memory, views, strict=True):
                m[:offset], m[offset + p.numel() :] = 7.0, 7.0
        with use_backend(backend):
            adamw_ema(**mine)
        assert all((m._base == 7).sum() >= 8 for m in mine["params"])
        results.append(mine["params"])
    for a, *others in zip(*results, strict=True):
        assert all(torch.equal(a, b) for b in others)


def test_gaps_in_memory_go_to_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    mine = arguments()
    mine["params"][3] = torch.randn(5, 14)[:, ::2]
    expected = arguments()
    expected["params"] = [p.clone() for p in mine["params"]]
    assert "without gaps" in str(adamw_ema_op.why_not(Backend.CPU, *_flat(mine)))
    adamw_ema(**mine)
    adamw_ema(**expected)
    torch.testing.assert_close(mine["params"], expected["params"], rtol=1e-5, atol=1e-6)


def _flat(mine: dict[str, Any]) -> tuple:
    """As the operator takes them."""
    lists = [mine[name] for name in ("params", "grads", "exp_avg", "exp_avg_sq", "steps")]
    return (*lists, sum(mine["emas"], []), mine.get("low", []), mine.get("grad_factor"), *NUMBERS)


NUMBERS = (1e-2, 0.9, 0.999, 1e-8, 0.1, [0.9])


def test_any_layout_without_gaps() -> None:
    """Transposed alike, and a gradient that is not."""
    mine, other = arguments(), arguments()
    for name in ("params", "exp_avg", "exp_avg_sq"):
        mine[name][3] = mine[name][3].T.contiguous().T
    mine["emas"][0][3] = mine["emas"][0][3].T.contiguous().T
    assert adamw_ema_op.why_not(Backend.CPU, *_flat(mine)) is None
    adamw_ema(**mine)
    adamw_ema(**other)
    assert torch.equal(mine["params"][3], other["params"][3]) and mine["params"][3].stride() == (1, 5)


@backends.each("adamw_ema")
def test_versions_count_up(backend: Backend) -> None:
    """Autograd, and the packed weights of an optimized model, see that something was written."""
    mine = arguments()
    mine["low"] = [p.bfloat16() for p in tensors(0)]
    written = [*mine["emas"][0], *(t for name in WRITTEN for t in mine[name])]
    before = [t._version for t in written]
    with use_backend(backend):
        adamw_ema(**mine)
    assert all(t._version > v for t, v in zip(written, before, strict=True))


WRITTEN = ("params", "exp_avg", "exp_avg_sq", "steps", "low")


def test_nothing_to_do() -> None:
    adamw_ema([], [], [], [], [], AdamWHyper(lr=1.0))
    with pytest.raises(FastdiffError, match="0 params need as many grads, got 1"):
        adamw_ema([], [torch.ones(3)], [], [], [], AdamWHyper(lr=1.0))
    with pytest.raises(FastdiffError, match="there are no params"):
        adamw_ema_op([], [torch.ones(3)], [], [], [], [], [], None, *NUMBERS)


@each_kernel
@pytest.mark.parametrize("state", ["bfloat16", "float64", "meta"])
def test_the_state_of_the_process_changes_nothing(backend: Backend, state: str) -> None:
    one, two = arguments(torch.channels_last), arguments(torch.channels_last)
    one["grads"], two["grads"] = tensors(1), tensors(1)  # which are copied
    with use_backend(backend):
        adamw_ema(**one)
        if state == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, state))
        adamw_ema(**two)
    torch.set_default_device(None)
    for name in ("params", "exp_avg", "exp_avg_sq", "steps"):
        assert all(torch.equal(a, b) for a, b in zip(one[name], two[name], strict=True))


@each_kernel
def test_nan_comes_through(backend: Backend) -> None:
    mine = arguments()
    mine["grads"][1][3] = float("nan")
    with use_backend(backend):
        adamw_ema(**mine)
    assert mine["params"][1].isnan().nonzero().tolist() == [[3]]
    assert not mine["params"][0].isnan().any()


BAD = {
    "lengths": (lambda c: c | {"grads": c["grads"][:3]}, "4 params need as many grads, got 3"),
    "averages": (lambda c: c | {"emas": []}, "1 decays need as many averages, got 0"),
    "shape": (lambda c: c | {"exp_avg": c["exp_avg"][::-1]}, "exp_avg must all be torch.float32"),
    "half-params": (lambda c: c | {"params": [p.half() for p in c["params"]]}, "params must be float32"),
    "steps": (lambda c: c | {"steps": [torch.zeros(1)] * 4}, "steps must be float32 scalars"),
    "factor": (lambda c: c | {"grad_factor": torch.ones(2)}, "grad_factor must be float32 scalars"),
    "low": (lambda c: c | {"low": c["params"]}, "low must all be torch.bfloat16 or torch.float16"),
    "low-mixed": (
        lambda c: c | {"low": _mixed(c["params"])},
        "low must all be torch.bfloat16 or torch.float16",
    ),
    "low-lengths": (lambda c: c | {"low": [c["params"][0].half()]}, "4 params need as many low, got 1"),
    "average": (lambda c: c | {"emas": [c["emas"][0][:3]]}, r"4 params need as many emas\[0\], got 3"),
    "grads-mixed": (lambda c: c | {"grads": _mixed(c["grads"])}, "grads must all be torch.float32 or"),
    "integers": (lambda c: c | {"grads": [g.long() for g in c["grads"]]}, "grads must all be torch.float32"),
    "double-grads": (lambda c: c | {"grads": [g.double() for g in c["grads"]]}, "grads must all be"),
    "double-state": (lambda c: c | {"exp_avg": [m.double() for m in c["exp_avg"]]}, "exp_avg must all be"),
    "views": (lambda c: c | {"exp_avg_sq": [v[None] for v in c["exp_avg_sq"]]}, "exp_avg_sq must all be"),
    **{
        f"meta-{name}": (lambda c, name=name: c | {name: _last_on_meta(c[name])}, f"{name} must .* on cpu")
        for name in ("params", "grads", "exp_avg", "exp_avg_sq", "steps")
    },
    "meta-factor": (lambda c: c | {"grad_factor": torch.ones((), device="meta")}, "grad_factor must be"),
}


def _mixed(given: list[Tensor]) -> list[Tensor]:
    return [given[0].half(), *(t.bfloat16() for t in given[1:])]


def _last_on_meta(given: list[Tensor]) -> list[Tensor]:
    return [*given[:-1], given[-1].to("meta")]


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    change, sentence = BAD[name]
    bad = change(arguments())
    with pytest.raises(FastdiffError, match=sentence):
        adamw_ema(**bad)
    # The operator has one flat list of averages, and meta tensors never ask for a kernel.
    if name not in ("averages", "average") and "meta" not in name:
        assert adamw_ema_op.why_not(Backend.CPU, *_flat(bad)) is not None
    with use_backend("eager"), pytest.raises(FastdiffError, match=sentence):
        adamw_ema(**bad)


def test_a_tensor_beyond_its_storage_is_left_alone() -> None:
    mine = arguments()
    mine["exp_avg"][1].untyped_storage().resize_(8)
    assert "exp_avg reaches beyond its storage" in str(adamw_ema_op.why_not(Backend.CPU, *_flat(mine)))


@pytest.mark.parametrize(
    "values",
    [{"lr": -1.0}, {"beta1": 1.0}, {"eps": float("nan")}, {"decays": (1.5,)}],
    ids=lambda v: next(iter(v)),
)
def test_bad_numbers(values: dict[str, Any]) -> None:
    with pytest.raises(FastdiffError, match="adamw_ema: "):
        dataclasses.replace(AdamWHyper(lr=1.0), **values)
