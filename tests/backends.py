"""The implementations of an op that this process has: parameters of the fixture ``backend`` (conftest.py)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastdiff import ops  # noqa: F401  (fills OPS)
from fastdiff.backend import Backend
from fastdiff.ops._case import Case
from fastdiff.ops._op import OPS

# Simulations of a GPU, on the CPU's tensors: Triton's interpreter computes with NumPy (conftest.py chooses it where
# there is no GPU), and the emulated library is the CUDA kernels compiled for the CPU (csrc/emulation).
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
SIMULATED = [Backend.TRITON] * INTERPRETED + [Backend.EMULATION] * (shutil.which("g++") is not None)
CUDA_SOURCES = "".join(path.read_text() for path in Path(__file__).parents[1].glob("csrc/cuda/*.cu"))
HERE = [Backend.REFERENCE, Backend.CPU, *SIMULATED]


def has(op: str, backend: Backend) -> bool:
    """Whether an op has an implementation for the CPU's tensors in this process."""
    if backend is Backend.EMULATION:  # its library may have to be built first
        return backend in HERE and f"fastdiff_{op}(" in CUDA_SOURCES
    return backend in HERE and "has no" not in (OPS[op].why_not(backend) or "")


def of(op: str, *left_out: Backend) -> list[Backend]:
    """An op's backends, except for some."""
    return [backend for backend in HERE if backend not in left_out and has(op, backend)]


def each(op: str, *left_out: Backend) -> pytest.MarkDecorator:
    """The test gets each backend of an op as ``backend``."""
    return pytest.mark.parametrize("backend", of(op, *left_out), ids=lambda b: b.value, indirect=True)


def each_kernel(op: str, *left_out: Backend) -> pytest.MarkDecorator:
    """:func:`each` without the reference."""
    return each(op, Backend.REFERENCE, *left_out)


def each_case(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """The test gets each case as ``case``, and by the fixture ``forced`` runs it as usual, on the reference, and on the
    emulated CUDA kernels. On the latter two one case of each op; the others are proofs.
    """
    seen, parameters = set(), []
    for case in cases:
        parameters.append(pytest.param(case, None, id=f"{case.op}-{case.name}"))
        for backend in (Backend.REFERENCE, Backend.EMULATION):
            if has(case.op, backend):
                repeated = (backend, case.op) in seen
                seen.add((backend, case.op))
                marks = [pytest.mark.proof] * repeated
                name = f"{case.op}-{backend.value}-{case.name}"
                parameters.append(pytest.param(case, backend, id=name, marks=marks))
    return pytest.mark.parametrize(("case", "forced"), parameters, indirect=["forced"])


def plainest(cases: Sequence[Case]) -> list[Case]:
    """The first case of each op."""
    return list({case.op: case for case in reversed(cases)}.values())[::-1]


def fullest(cases: Sequence[Case]) -> list[Case]:
    """The case with the most tensors of each op."""
    return plainest(sorted(cases, key=_tensor_count, reverse=True))


def _tensor_count(case: Case) -> int:
    return sum(isinstance(value, torch.Tensor) for value in case.inputs(torch.float32, "cpu").values())
