"""The emulated CUDA library, for a test or for a subprocess."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import toolchain
import torch

from fastdiff.backend import Backend
from fastdiff.ops import _cuda
from fastdiff.ops._op import OPS
from fastdiff.ops.group_norm_silu.cuda import _template


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """Built where it is not there yet."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the emulation with")
    return toolchain.build_emulated()


@pytest.fixture
def emulated_cuda(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``use_backend("cuda")`` runs the CUDA kernels on the CPU's tensors."""
    monkeypatch.setenv("FASTDIFF_CUDA_LIBRARY", str(emulated_library))
    _forget()
    yield
    _forget()


@pytest.fixture
def cuda_kernels(request: pytest.FixtureRequest) -> None:
    """The CUDA kernels where they are: on a GPU, or else emulated."""
    if not torch.cuda.is_available():
        request.getfixturevalue("emulated_cuda")
    elif reason := _cuda.why_not():
        pytest.skip(reason)


def _forget() -> None:
    for known in (_cuda._load, _cuda.function, _cuda.workspace_function, _template):
        known.cache_clear()
    for op in OPS.values():
        op._kernels.pop(Backend.CUDA, None)
