"""How the ops enter PyTorch: schemas, fake tensors, autograd, one graph; and every instruction set's library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import backends
import pytest
import torch
from case_runs import run
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.ops import _library
from fastdiff.ops._case import Case
from fastdiff.ops._op import FusedOp
from fastdiff.ops.cases import CASES

SMALL = [case for case in CASES if not case.benchmark]
FULLEST = backends.fullest(SMALL)


QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def _run(function: Any, case: Case) -> list[Tensor]:
    return run(function, case, case.inputs(torch.float32, "cpu"))


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"{c.op}-{c.name}")
def test_opcheck(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward operators, with the arguments that the public function gives them."""
    calls: list[tuple[FusedOp, tuple]] = []
    call = FusedOp.__call__
    monkeypatch.setattr(FusedOp, "__call__", lambda op, *args: (calls.append((op, args)), call(op, *args))[1])
    _run(case.fused, case)
    monkeypatch.undo()
    assert calls
    for op, args in calls:
        leaves = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        if not op.name.endswith("_backward"):  # has no derivative of its own
            for leaf, a in zip(leaves, args, strict=True):
                if isinstance(a, Tensor) and a.requires_grad:
                    leaf.requires_grad_()
        operator = getattr(torch.ops.fastdiff, op.name).default
        # The check under dynamic shapes compiles a call several times over.
        checks = QUICK_CHECKS if case not in FULLEST else (*QUICK_CHECKS, "test_aot_dispatch_dynamic")
        # The tolerance is for sums in another order.
        torch.library.opcheck(operator, leaves, test_utils=checks, rtol=1e-3, atol=1e-3)


@pytest.mark.proof
@pytest.mark.parametrize("case", [c for c in SMALL if c not in FULLEST], ids=lambda c: f"{c.op}-{c.name}")
def test_opcheck_under_dynamic_shapes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.FULLEST", SMALL)
    test_opcheck(case, monkeypatch)


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, id=f"{case.op}-{case.name}-{backend.value}", marks=marks)
        for case in SMALL
        for backend, marks in (
            (Backend.CPU, []),
            (Backend.REFERENCE, [] if case in FULLEST else [pytest.mark.proof]),
        )
    ],
)
def test_traces_into_one_graph(case: Case, backend: Backend) -> None:
    if backend is Backend.CPU and case.falls_back:
        backend = Backend.REFERENCE
    with use_backend(backend):
        plain = _run(case.fused, case)
        torch._dynamo.reset()
        traced = _run(torch.compile(case.fused, fullgraph=True, backend="aot_eager", dynamic=False), case)
    for a, b in zip(plain, traced, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)  # sums in another order


@pytest.mark.parametrize("case", [c for c in SMALL if c.differentiable], ids=lambda c: f"{c.op}-{c.name}")
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    inputs = case.inputs(torch.float64, "cpu")
    leaves = [inputs[k].detach().requires_grad_() for k in case.differentiable]

    def function(*values: Tensor) -> Any:
        return case.fused(**inputs | dict(zip(case.differentiable, values, strict=True)))

    with use_backend(Backend.REFERENCE):
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("case", [c for c in SMALL if not c.falls_back], ids=lambda c: f"{c.op}-{c.name}")
def test_threads_do_not_change_a_bit(case: Case) -> None:
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        with use_backend(Backend.CPU):
            results.append(_run(case.fused, case))
    outputs = len(results[0]) - len(case.differentiable)
    names = [None] * outputs + list(case.differentiable)
    for one, *others, name in zip(*results, names[: len(results[0])], strict=True):
        tolerance = 1e-5 if name in case.library_gradients else 0
        for other in others:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    "chosen", ["cpu and f32", pytest.param("cpu and not f32", marks=pytest.mark.proof)], ids=["f32", "16_bit"]
)
@pytest.mark.parametrize("library", ["avx512", "avx2", "default"])
def test_other_instruction_sets(library: str, chosen: str) -> None:
    """The cpu kernels again, on the libraries for lesser processors (PyTorch's own switches also pick ours)."""
    if _library.instruction_set() == library:
        pytest.skip("this is the library under test anyway")
    if library == "avx512" and _library.instruction_set() != "amx":
        pytest.skip("this processor has no AVX-512")
    # oneDNN, too: where it finds AMX, PyTorch's attention in bfloat16 asks for instructions that were ruled out.
    onednn = {"avx512": "AVX512_CORE", "avx2": "AVX2", "default": "SSE41"}[library]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": library, "ONEDNN_MAX_CPU_ISA": onednn}
    cases = str(Path(__file__).with_name("test_cases.py"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-m",
        "not large",
        "-k",
        f"{chosen} or instruction_set",
        cases,
    ]
    environment["FASTDIFF_TEST_INSTRUCTION_SET"] = library
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
