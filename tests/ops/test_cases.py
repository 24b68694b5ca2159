"""Every op, on every backend and dtype it has, over all of its cases: values, gradients, layout.

Truth is eager PyTorch in float64 on the same (already rounded) inputs. A kernel's error against it may be at
most twice that of eager PyTorch in the kernel's own dtype, plus a floor of a few units in the last place.
"""

from __future__ import annotations

import os
from typing import Any

import backends
import pytest
import torch
from case_runs import run
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.ops._case import Case
from fastdiff.ops._library import instruction_set, unavailable
from fastdiff.ops._op import OPS
from fastdiff.ops.cases import CASES

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
# Relative to the result's size. In float64 the truth is no better than what it judges: sums in another order.
FLOORS = {torch.float32: 8 * torch.finfo(torch.float32).eps, torch.float64: 1e-11}
DEVICES = {
    Backend.REFERENCE: "cpu",
    Backend.CPU: "cpu",
    Backend.TRITON: "cpu" if backends.INTERPRETED else "cuda",
    Backend.CUDA: "cuda",
    Backend.EMULATION: "cpu",
}
# Parts of names of cases that only take longer where a GPU is simulated.
LARGE = (
    *("256x", "x256", "4x128x", "many_pixels", "64x1x32", "4096x20", "16x3x64", "T1024", "T256"),
    *("B4", "B1-", "several_blocks"),
)


def _runs(case: Case, backend: Backend, dtype: torch.dtype) -> bool:
    if backend is Backend.REFERENCE:
        return not case.benchmark  # large sizes are for kernels, which cut them up
    if case.falls_back or dtype is torch.float64:
        return False
    if case.op == "conv2d" and case.benchmark and dtype is torch.float16:
        return False  # eager has no fast convolution in float16 here: minutes at these sizes
    if backend in backends.SIMULATED:
        return backends.has(case.op, backend) and not any(name in case.name for name in LARGE)
    return OPS[case.op].why_not(backend) is None


def _marks(case: Case, backend: Backend, dtype: torch.dtype) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.large] * case.benchmark
    if backend in backends.SIMULATED:
        # A GPU's 16-bit types share their kernels, and float32 differs from them in the arithmetic, not in the sizes.
        is_sampled = dtype is torch.bfloat16 or (dtype is torch.float32 and _elements(case) < 5_000)
        marks += [pytest.mark.proof] * (case.benchmark or not is_sampled)
    elif dtype is torch.float16:
        marks += [pytest.mark.proof] * case.benchmark
    return marks


def _elements(case: Case) -> int:
    return sum(v.numel() for v in case.inputs(torch.float32, "cpu").values() if isinstance(v, Tensor))


PARAMETERS = [
    pytest.param(
        case,
        backend,
        dtype,
        id=f"{case.op}-{backend.value}-{short}-{case.name}",
        marks=_marks(case, backend, dtype),
    )
    for case in CASES
    for backend in DEVICES
    for short, dtype in DTYPES.items()
    if _runs(case, backend, dtype)
]


def _exact(value: Any) -> Any:
    """In float64, and contiguous: PyTorch's group norm of channels_last loses digits when the mean is large."""
    return value.double().contiguous() if isinstance(value, Tensor) and value.is_floating_point() else value


def _weighted(y: Tensor) -> Tensor:
    """A fixed weighting, so that every element of the gradients is another."""
    return (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)).sum()


def _errors(got: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [
        float((g.double() - t.double()).abs().max()) if t.numel() else 0.0
        for g, t in zip(got, truth, strict=True)
    ]


@pytest.mark.parametrize(("case", "backend", "dtype"), PARAMETERS, indirect=["backend"])
def test_values_and_gradients(case: Case, backend: Backend, dtype: torch.dtype) -> None:
    kwargs = case.inputs(dtype, DEVICES[backend])
    truth = run(case.eager, case, {k: _exact(v) for k, v in kwargs.items()}, _weighted)
    eager = run(case.eager, case, kwargs, _weighted)
    with use_backend(backend):
        got = run(case.fused, case, kwargs, _weighted)
    floor = FLOORS.get(dtype, torch.finfo(dtype).eps)
    for i, (error, bound, t) in enumerate(
        zip(_errors(got, truth), _errors(eager, truth), truth, strict=True)
    ):
        size = max(1.0, float(t.abs().max()) if t.numel() else 0.0)
        assert error <= 2 * bound + floor * size, f"result {i}: error {error:.3g}, eager's {bound:.3g}"
    first = next(v for v in kwargs.values() if isinstance(v, Tensor))
    if not (case.keeps_layout and first.is_floating_point()):
        return  # noise takes neither dtype nor layout from its seeds
    assert got[0].dtype == first.dtype
    assert got[0].stride() == torch.empty_like(first).stride()


def test_cpu_backend_is_built_for_this_instruction_set() -> None:
    """In this suite the compiled library is not optional."""
    assert unavailable(Backend.CPU) is None
    wanted = os.environ.get("FASTDIFF_TEST_INSTRUCTION_SET", instruction_set())
    assert instruction_set() == wanted
