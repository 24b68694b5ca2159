"""The tests of ops on another backend than the one that is chosen: ``FASTDIFF_TEST_BACKEND=reference pytest ...``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from fastdiff.backend import use_backend


@pytest.fixture(autouse=True)
def _test_backend() -> Iterator[None]:
    name = os.environ.get("FASTDIFF_TEST_BACKEND")
    with use_backend(name) if name else contextlib.nullcontext():
        yield
