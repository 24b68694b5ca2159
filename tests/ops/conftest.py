"""Tests of ops with their calls forced onto a backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastdiff.backend import Backend, use_backend


@pytest.fixture
def forced(request: pytest.FixtureRequest) -> Iterator[None]:
    """The parameter of ``backends.each_case``: None forces nothing."""
    if request.param is None:
        yield
        return
    if request.param is Backend.EMULATION:
        request.getfixturevalue("emulated_cuda")
        if request.node.callspec.params.get("dtype") is torch.float64:
            pytest.skip("the kernels decline float64")
    with use_backend(request.param):
        yield
