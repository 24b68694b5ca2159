"""torch.func and forward mode through every op: values of float64 autograd, nested once in each order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backends
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.ops._case import Case
from fastdiff.ops.cases import CASES

_SMALL = [c for c in CASES if not c.benchmark and c.differentiable]
_NAMES = ("odd", "plain", "adaptive", "everything", "guidance", "learned", "skip")
# A few of each op: the plainest, and what the names promise.
CHOSEN = [
    c
    for op in dict.fromkeys(c.op for c in _SMALL)
    for c in [c for c in _SMALL if c.op == op and any(name in c.name for name in _NAMES)][:3]
    or [next(c for c in _SMALL if c.op == op)]
]
EACH_CASE = backends.each_case(CHOSEN)
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])

Function = Callable[..., Tensor]


def _functions(
    case: Case, dtype: torch.dtype
) -> tuple[Function, Function, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The op and eager PyTorch in float64, as scalar functions of the differentiable tensors; these, a direction."""
    inputs = case.inputs(dtype, "cpu")
    exact = {
        k: v.double().contiguous() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }

    def scalar(function: Callable[..., Any], others: dict[str, Any]) -> Function:
        def of(*tensors: Tensor) -> Tensor:
            outputs = function(**others | dict(zip(case.differentiable, tensors, strict=True)))
            first = outputs if isinstance(outputs, Tensor) else outputs[0]
            # Not linear in the output, so that every second derivative has a part.
            return (first * first).sum() / max(first.numel(), 1)

        return of

    generator = torch.Generator().manual_seed(3)
    primals = tuple(inputs[k] for k in case.differentiable)
    tangents = tuple(torch.randn(p.shape, generator=generator).to(p) for p in primals)
    return scalar(case.fused, inputs), scalar(case.eager, exact), primals, tangents


def _double(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.double().contiguous() for t in tensors)


def _close(got: Any, wanted: Any, dtype: torch.dtype) -> None:
    got, wanted = ([r] if isinstance(r, Tensor) else list(r) for r in (got, wanted))
    tolerance = 2e-3 if dtype == torch.float32 else 1e-9
    for g, w in zip(got, wanted, strict=True):
        scale = max(float(w.abs().max()) if w.numel() else 0.0, 1e-3)
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance * scale)


def _argnums(primals: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(primals)))


@EACH_CASE
@EACH_DTYPE
def test_forward_mode(case: Case, forced: None, dtype: torch.dtype) -> None:
    op, exact, primals, tangents = _functions(case, dtype)
    wanted = torch.func.jvp(exact, _double(primals), _double(tangents))
    _close(torch.func.jvp(op, primals, tangents), wanted, dtype)
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True))
        value, tangent = forward_ad.unpack_dual(op(*duals))
        assert tangent is not None
        _close((value, tangent), wanted, dtype)


@EACH_CASE
@EACH_DTYPE
def test_reverse_mode(case: Case, forced: None, dtype: torch.dtype) -> None:
    op, exact, primals, _ = _functions(case, dtype)
    wanted = torch.func.grad(exact, _argnums(primals))(*_double(primals))
    _close(torch.func.grad(op, _argnums(primals))(*primals), wanted, dtype)
    value, pull = torch.func.vjp(op, *primals)
    _close(pull(torch.ones_like(value)), wanted, dtype)


@EACH_CASE
@EACH_DTYPE
def test_forward_over_reverse(case: Case, forced: None, dtype: torch.dtype) -> None:
    """A product with the Hessian: what MeanFlow and continuous-time consistency models train on."""
    op, exact, primals, tangents = _functions(case, dtype)
    argnums = _argnums(primals)
    wanted = torch.func.jvp(torch.func.grad(exact, argnums), _double(primals), _double(tangents))[1]
    _close(torch.func.jvp(torch.func.grad(op, argnums), primals, tangents)[1], wanted, dtype)


@EACH_CASE
@EACH_DTYPE
def test_reverse_over_reverse(case: Case, forced: None, dtype: torch.dtype) -> None:
    op, exact, primals, tangents = _functions(case, dtype)

    def twice(function: Function, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = [p.detach().requires_grad_() for p in at]
        first = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum((f * t).sum() for f, t in zip(first, along, strict=True)), leaves)

    _close(twice(op, primals, tangents), twice(exact, _double(primals), _double(tangents)), dtype)


@EACH_CASE
def test_vmap(case: Case, forced: None) -> None:
    """Each member of the batch as if it were alone; and its gradient, as for gradients per sample."""
    op, _, primals, tangents = _functions(case, torch.float32)
    batch = tuple(torch.stack([p, p + 0.1 * t]) for p, t in zip(primals, tangents, strict=True))
    members = [tuple(b[i] for b in batch) for i in range(2)]
    torch.testing.assert_close(torch.func.vmap(op)(*batch), torch.stack([op(*m) for m in members]))
    gradient = torch.func.grad(op, _argnums(primals))
    together = torch.func.vmap(gradient)(*batch)
    for i, m in enumerate(members):
        torch.testing.assert_close([g[i] for g in together], list(gradient(*m)), rtol=1e-4, atol=1e-5)


@EACH_CASE
def test_vmap_of_forward_mode(case: Case, forced: None) -> None:
    """Columns of the Jacobian: many directions at one point."""
    op, exact, primals, tangents = _functions(case, torch.float32)
    directions = tuple(torch.stack([t, -2 * t]) for t in tangents)

    def along(*direction: Tensor) -> Tensor:
        return torch.func.jvp(op, primals, direction)[1]

    wanted = torch.func.jvp(exact, _double(primals), _double(tangents))[1]
    _close(torch.func.vmap(along)(*directions), torch.stack([wanted, -2 * wanted]), torch.float32)
