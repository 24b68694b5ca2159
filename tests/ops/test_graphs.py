"""Every way in which PyTorch records a function: the operator is in the graph, and the graph computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backends
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastdiff.ops._case import Case
from fastdiff.ops.cases import CASES

# Two of each op: its plainest, and the one with the most tensors. adamw_ema writes in place and returns nothing.
_SMALL = [c for c in CASES if not c.benchmark and not c.falls_back and c.op != "adamw_ema"]
CHOSEN = list(
    {f"{c.op}-{c.name}": c for c in (*backends.plainest(_SMALL), *backends.fullest(_SMALL))}.values()
)
EACH_CASE = backends.each_case(CHOSEN)


def _tensors(case: Case) -> dict[str, Tensor]:
    return {k: v for k, v in case.inputs(torch.float32, "cpu").items() if isinstance(v, Tensor)}


def _function(case: Case) -> tuple[Callable[..., Any], list[Tensor], list[Tensor]]:
    """The op as a function of its tensors; these, and others of their kinds that give another result."""
    inputs = case.inputs(torch.float32, "cpu")
    names = [k for k, v in inputs.items() if isinstance(v, Tensor)]

    def function(*tensors: Tensor) -> Any:
        return case.fused(**inputs | dict(zip(names, tensors, strict=True)))

    tensors = [inputs[name] for name in names]
    others = [t.roll(1, 0) if t.dim() and t.is_floating_point() else t.clone() for t in tensors]
    return function, tensors, [_like(o, t) for o, t in zip(others, tensors, strict=True)]


def _like(values: Tensor, t: Tensor) -> Tensor:
    return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype).copy_(values)


def _same(got: Any, wanted: Any) -> None:
    got, wanted = ([r] if isinstance(r, Tensor) else list(r) for r in (got, wanted))
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and g.stride() == w.stride()
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


@EACH_CASE
def test_jit_trace(case: Case, forced: None) -> None:
    function, tensors, others = _function(case)
    traced = torch.jit.trace(function, tuple(tensors), check_trace=False)
    assert f"fastdiff::{_operator(case)}(" in str(traced.graph)
    _same(traced(*others), function(*others))


def _operator(case: Case) -> str:
    return {"philox": "philox_normal", "bits": "philox_bits"}.get(case.op, case.op)


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


@EACH_CASE
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_export(case: Case, forced: None, strict: bool) -> None:
    function, tensors, others = _function(case)
    program = torch.export.export(_Module(function), tuple(tensors), strict=strict)
    assert any(_is_the_operator(node, case) for node in program.graph.nodes)
    _same(program.module()(*others), function(*others))


@EACH_CASE
def test_make_fx(case: Case, forced: None) -> None:
    function, tensors, others = _function(case)
    graph = make_fx(function)(*tensors)
    assert any(_is_the_operator(node, case) for node in graph.graph.nodes)
    _same(graph(*others), function(*others))


def _is_the_operator(node: torch.fx.Node, case: Case) -> bool:
    return node.target is getattr(torch.ops.fastdiff, _operator(case)).default


@backends.each_case([c for c in CHOSEN if c.differentiable])
def test_a_traced_module_is_differentiable(case: Case, forced: None) -> None:
    """Parameters that want a gradient while they are traced, and get it of what was traced."""
    function, tensors, _ = _function(case)
    names = list(_tensors(case))
    leaves = [
        t.detach().requires_grad_() if name in case.differentiable else t
        for name, t in zip(names, tensors, strict=True)
    ]
    traced = torch.jit.trace(function, tuple(leaves), check_trace=False)
    gradients = []
    for run in (function, traced):
        outputs = run(*leaves)
        first = outputs if isinstance(outputs, Tensor) else outputs[0]
        wanted = [t for t in leaves if t.requires_grad]
        gradients.append(torch.autograd.grad(first.square().sum(), wanted))
    _same(list(gradients[1]), list(gradients[0]))
