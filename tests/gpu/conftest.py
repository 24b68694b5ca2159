"""The CUDA kernels, on a GPU or emulated."""

from __future__ import annotations

import pytest
import torch

from fastdiff.backend import Backend
from fastdiff.ops._library import unavailable


@pytest.fixture
def cuda_kernels(request: pytest.FixtureRequest) -> Backend:
    """The backend of the CUDA kernels where they are: on a GPU, or else emulated."""
    if not torch.cuda.is_available():
        request.getfixturevalue("emulated_cuda")
        return Backend.EMULATION
    if reason := unavailable(Backend.CUDA):
        pytest.skip(reason)
    return Backend.CUDA
