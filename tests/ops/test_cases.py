"""Every op, on every backend and dtype it has, over all of its cases: values, gradients, layout, tracing, threads.

Truth is eager PyTorch in float64 on the same (already rounded) inputs, made contiguous: in channels_last even
its float64 group norm loses half of its digits to a large mean. A kernel's error against the truth may be at
most twice that of eager PyTorch in the kernel's own dtype, plus a floor of a few units in the last place.

Cases of the benchmark's size are for the kernels alone: there, work is shared among threads and cut into chunks.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastdiff.backend import Backend, unavailable, use_backend
from fastdiff.ops import _native
from fastdiff.ops._case import Case
from fastdiff.ops._op import OPS, FusedOp
from fastdiff.ops.cases import CASES

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
# Relative to the result's size. In float64 the truth is no better than what it judges: sums in another order.
FLOORS = {torch.float32: 8 * torch.finfo(torch.float32).eps, torch.float64: 1e-10}
DEVICES = {Backend.REFERENCE: "cpu", Backend.CPU: "cpu", Backend.TRITON: "cuda", Backend.CUDA: "cuda"}


# The variable by which torch, and with it the choice of the library, is told to leave out instructions.
CAPABILITY = "ATEN_CPU_CAPABILITY"
LESSER = tuple(itertools.takewhile(lambda isa: isa != _native.instruction_set(), ("default", "avx2")))
SMALL = [case for case in CASES if not case.benchmark]
FIRST = {case.op: case for case in reversed(SMALL)}


def _runs(case: Case, backend: Backend, dtype: torch.dtype = torch.float32) -> bool:
    if backend is Backend.REFERENCE:
        return not case.benchmark
    if case.falls_back or dtype is torch.float64:
        return False
    if case.benchmark and (dtype is not torch.float32 or CAPABILITY in os.environ):
        return False
    return OPS[case.op].why_not(backend) is None


def _id(case: Case, *more: str) -> str:
    return "-".join((case.op, *more, case.name))


PARAMETERS = [
    pytest.param(case, backend, dtype, id=_id(case, backend.value, short))
    for case in CASES
    for backend in DEVICES
    for short, dtype in DTYPES.items()
    if _runs(case, backend, dtype)
]
on_each_backend = pytest.mark.parametrize(
    ("case", "backend"),
    [pytest.param(c, b, id=_id(c, b.value)) for c in SMALL for b in DEVICES if _runs(c, b)],
)


def _exact(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(torch.float64, memory_format=torch.contiguous_format)


def _leaves(kwargs: dict[str, Any], case: Case) -> dict[str, Any]:
    return {k: v.detach().requires_grad_() if k in case.differentiable else v for k, v in kwargs.items()}


def _run(function: Any, case: Case, kwargs: dict[str, Any]) -> list[Tensor]:
    """Outputs, then gradients of a fixed weighting of the first output."""
    kwargs = _leaves(kwargs, case)
    outputs = function(**kwargs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    result = [o.detach() for o in outputs]
    if case.differentiable and outputs[0].numel():
        weighting = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
        weighting = weighting.to(outputs[0])
        result += torch.autograd.grad(outputs[0], [kwargs[k] for k in case.differentiable], weighting)
    return result


def _errors(got: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [
        float((g.double() - t.double()).abs().max()) if t.numel() else 0.0
        for g, t in zip(got, truth, strict=True)
    ]


@pytest.mark.parametrize(("case", "backend", "dtype"), PARAMETERS)
def test_values_and_gradients(case: Case, backend: Backend, dtype: torch.dtype) -> None:
    kwargs = case.inputs(dtype, DEVICES[backend])
    truth = _run(case.eager, case, {k: _exact(v) for k, v in kwargs.items()})
    eager = _run(case.eager, case, kwargs)
    with use_backend(backend):
        got = _run(case.fused, case, kwargs)
    floor = FLOORS.get(dtype, torch.finfo(dtype).eps)
    for i, (error, bound, t) in enumerate(
        zip(_errors(got, truth), _errors(eager, truth), truth, strict=True)
    ):
        size = max(1.0, float(t.abs().max()) if t.numel() else 0.0)
        assert error <= 2 * bound + floor * size, f"result {i}: error {error:.3g}, eager's {bound:.3g}"
    first = next(v for v in kwargs.values() if isinstance(v, Tensor))
    if not first.is_floating_point():
        return  # noise takes neither dtype nor layout from its seeds
    assert got[0].dtype == first.dtype
    assert got[0].stride() == torch.empty_like(first).stride()


@pytest.mark.parametrize("case", SMALL, ids=_id)
def test_traces_into_one_graph(case: Case) -> None:
    kwargs = case.inputs(torch.float32, "cpu")
    plain = _run(case.fused, case, kwargs)
    torch._dynamo.reset()
    compiled = torch.compile(case.fused, fullgraph=True, backend="aot_eager", dynamic=False)
    traced = _run(compiled, case, kwargs)
    for a, b in zip(plain, traced, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)  # sums in another order


@on_each_backend
def test_operators_keep_pytorchs_rules(case: Case, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, fake and autograd of all operators that the public function and its backward call."""
    calls = []
    call = FusedOp.__call__

    def record(op: FusedOp, *args: Any) -> Any:
        in_backward = not torch.is_grad_enabled()
        calls.append((op, tree_map_only(Tensor, Tensor.detach, args) if in_backward else args))
        return call(op, *args)

    monkeypatch.setattr(FusedOp, "__call__", record)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if case is FIRST[case.op]:
        checks.append("test_aot_dispatch_dynamic")  # slow, and the fake is the same for all
    with use_backend(backend):
        _run(case.fused, case, case.inputs(torch.float32, DEVICES[backend]))
        assert calls
        for op, args in calls:
            torch.library.opcheck(op._overload, args, test_utils=checks)


@pytest.mark.parametrize("case", [c for c in SMALL if c.differentiable], ids=_id)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    kwargs = _leaves(case.inputs(torch.float64, "cpu"), case)

    def function(*leaves: Tensor) -> Any:
        return case.fused(**kwargs | dict(zip(case.differentiable, leaves, strict=True)))

    with use_backend("reference"):
        assert torch.autograd.gradcheck(function, [kwargs[k] for k in case.differentiable], fast_mode=True)


@pytest.mark.parametrize("case", [c for c in CASES if _runs(c, Backend.CPU)], ids=_id)
def test_threads_do_not_change_a_bit(case: Case) -> None:
    kwargs = case.inputs(torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with use_backend("cpu"):
                results.append(_run(case.fused, case, kwargs))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_cpu_backend_is_built() -> None:
    """In this suite the compiled library is not optional."""
    assert unavailable(Backend.CPU) is None
    assert _native.instruction_set() == os.environ.get(CAPABILITY, _native.instruction_set())


@pytest.mark.skipif(CAPABILITY in os.environ, reason="this is such a run")
@pytest.mark.parametrize("capability", LESSER)
def test_kernels_of_lesser_instruction_sets(capability: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "(values and cpu) or is_built"],
        env=os.environ | {CAPABILITY: capability},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
