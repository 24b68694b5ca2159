"""The emulated CUDA library, for a test or for a subprocess."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import toolchain
import torch

from fastdiff.backend import Backend
from fastdiff.ops._library import LIBRARIES, unavailable


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """Built where it is not there yet."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the emulation with")
    return toolchain.build_emulated()


@pytest.fixture
def emulated_cuda(emulated_library: Path) -> Iterator[None]:
    """``use_backend("emulation")`` runs the CUDA kernels on the CPU's tensors."""
    before = LIBRARIES.reasons.get(Backend.EMULATION)
    LIBRARIES.open(Backend.EMULATION, emulated_library, "")
    yield
    if before is not None:
        LIBRARIES.reasons[Backend.EMULATION] = before


@pytest.fixture
def cuda_kernels(request: pytest.FixtureRequest) -> Backend:
    """The backend of the CUDA kernels where they are: on a GPU, or else emulated."""
    if not torch.cuda.is_available():
        request.getfixturevalue("emulated_cuda")
        return Backend.EMULATION
    if reason := unavailable(Backend.CUDA):
        pytest.skip(reason)
    return Backend.CUDA


@pytest.fixture
def device(cuda_kernels: Backend) -> str:
    """Where these kernels' tensors are."""
    return "cuda" if cuda_kernels is Backend.CUDA else "cpu"
