"""Dispatch by measurement: what the table says is what runs; what it does not say takes the default order."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.backend import PREFERENCE, Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import AdamWHyper, _measured, adamw_ema, attention, channel_moments
from fastdiff.ops._op import OPS, FusedOp
from fastdiff.ops.attention import eager

NAME = "NVIDIA Made-up"


@pytest.fixture
def measured(monkeypatch):
    """Make a table that is looked up for the CPU, as a GPU of a capability."""

    def use(ops: dict[str, dict[str, str]] | None, capability: tuple[int, int] = (8, 0)) -> None:
        found = None if ops is None else {"capability": "8.0", "date": "2026-01-02", "torch": "2", "ops": ops}
        monkeypatch.setattr(_measured, "DEVICE_TYPE", "cpu")
        # A file is read, as the first time: which no compiler can trace.
        monkeypatch.setattr(_measured, "entry", lambda index: found if _measured.PATH.read_text() else None)
        monkeypatch.setattr(_measured, "_capability", lambda index: capability)

    before = torch.ops.fastdiff._measure_cpu(True)
    yield use
    torch.ops.fastdiff._measure_cpu(before)


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Which way calls of ops go: PyTorch's kernel asked for, the reference, or else the CPU's kernels."""
    calls: list[str] = []
    library = eager.attention

    @functools.wraps(library)
    def own(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(f"eager:{kwargs['kernel']}".removesuffix(":"))
        return library(*args, **kwargs)

    monkeypatch.setattr(eager, "attention", own)
    for name in ("attention", "attention_backward", "channel_moments", "adamw_ema"):
        _note(monkeypatch, OPS[name], calls)
    call = FusedOp.__call__

    def noted(op: FusedOp, *args: Any) -> Any:
        before = len(calls)
        result = call(op, *args)
        if len(calls) == before:
            calls.append(f"{op.name} cpu")
        return result

    monkeypatch.setattr(FusedOp, "__call__", noted)
    return calls


def _note(monkeypatch, op: FusedOp, calls: list[str]) -> None:
    run = op.reference
    monkeypatch.setattr(op, "reference", lambda *args: (calls.append(f"{op.name} reference"), run(*args))[1])


def _qkv(t: int = 20, d: int = 16, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 2, t, d).to(dtype).requires_grad_(grad) for _ in range(3)]


OURS = f"attention {PREFERENCE['cpu'][0].value}"


@pytest.mark.parametrize(
    ("ops", "dtype", "expected"),
    [
        ({}, torch.float32, OURS),
        ({"attention": {"float32 D16 T64": "reference"}}, torch.float32, "attention reference"),
        ({"attention": {"float32 D16 T256": "reference"}}, torch.float32, OURS),
        ({"attention": {"float32 D64 T64": "reference"}}, torch.float32, OURS),
        ({"attention": {"float32 D16 T64": "eager"}}, torch.float32, "eager"),
        ({"attention": {"float32 D16 T64": "eager:efficient"}}, torch.float32, "eager:efficient"),
        ({"attention": {"float32 D16 T64": "eager"}}, torch.bfloat16, OURS),
        ({"attention_training": {"float32 D16 T64": "eager"}}, torch.float32, OURS),
    ],
)
def test_attention_goes_where_the_table_says(measured, ran, ops, dtype, expected) -> None:
    measured(ops)
    q, k, v = _qkv(dtype=dtype)
    out = attention(q, k, v)
    assert ran == [expected]
    torch.testing.assert_close(out, eager.attention(q, k, v, kernel=""), rtol=0.02, atol=0.02)


def test_training_has_entries_of_its_own(measured, ran) -> None:
    """PyTorch's own call is then differentiated by PyTorch."""
    measured({"attention_training": {"float32 D16 T64": "eager"}})
    q, k, v = _qkv(grad=True)
    gradients = torch.autograd.grad(attention(q, k, v).sum(), [q, k, v])
    assert ran == ["eager"]
    with torch.no_grad():
        attention(q, k, v)
    assert ran[1:] == [OURS]
    with use_backend("reference"):
        expected = torch.autograd.grad(attention(q, k, v).sum(), [q, k, v])
    torch.testing.assert_close(gradients, expected)


def test_a_backward_is_looked_up_by_itself(measured, ran) -> None:
    measured({"attention_backward": {"float32 D16 T64": "reference"}})
    q, k, v = _qkv(grad=True)
    attention(q, k, v).sum().backward()
    assert ran == [OURS, "attention_backward reference"]


def test_where_nothing_was_measured(measured, ran) -> None:
    """From Hopper on PyTorch's own attention in half precision, ours otherwise."""
    for found in (None, {}):
        for dtype in (torch.float32, torch.bfloat16):
            measured(found, (8, 9))
            attention(*_qkv(dtype=dtype))
            measured(found, (9, 0))
            attention(*_qkv(dtype=dtype))
    assert ran == [OURS, OURS, OURS, "eager"] * 2


def test_a_forced_backend_is_stronger(measured, ran) -> None:
    measured({"attention": {"float32 D16 T64": "eager"}})
    with use_backend("reference"):
        attention(*_qkv())
    assert ran == ["attention reference"]


def test_other_ops_are_looked_up_by_dtype(measured, ran) -> None:
    measured({"channel_moments": {"bfloat16": "reference"}})
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        channel_moments(x)
        channel_moments(x.bfloat16())
    first = "cpu" if OPS["channel_moments"].why_not(Backend.CPU) is None else "reference"
    assert ran == [f"channel_moments {first}", "channel_moments reference"]


@pytest.mark.parametrize("ops", [None, {"adamw_ema": {"float32": "reference"}}], ids=["unknown", "known"])
def test_an_op_on_lists_goes_by_their_first_tensor(measured, ran, ops) -> None:
    measured(ops)
    one = [[torch.ones(3)] for _ in range(4)]
    adamw_ema(*one, [torch.zeros(())], AdamWHyper(lr=1e-3))
    assert ran == [f"adamw_ema {'reference' if ops else 'cpu'}"]


@pytest.mark.parametrize("best", ["eager", "reference"])
def test_compiles_as_one_graph(measured, best: str) -> None:
    measured({"attention": {"float32 D16 T64": best}, "attention_training": {"float32 D16 T64": best}})
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for grad in (False, True):
        q, k, v = _qkv(grad=grad)
        torch.testing.assert_close(compiled(q, k, v), attention(q, k, v))


def test_the_table_in_the_package() -> None:
    """Every word of it is one that the dispatch knows."""
    content = json.loads(_measured.PATH.read_text())
    kernels = {"eager", *(f"eager:{kernel}" for kernel in eager.KERNELS)}
    for device in content["devices"].values():
        assert {"capability", "date", "torch", "triton", "ops"} <= device.keys()
        for op, classes in device["ops"].items():
            assert op in {*OPS, "attention_training"}
            backends = {b.value for b in Backend} - {"eager"}
            assert set(classes.values()) <= (backends | kernels if op.startswith("attention") else backends)


def test_the_cpu_never_looks(monkeypatch) -> None:
    def looked(*_: Any) -> None:
        raise FastdiffError("looked up")

    monkeypatch.setattr(_measured, "entry", looked)
    monkeypatch.setattr(_measured, "order", looked)
    attention(*_qkv())
