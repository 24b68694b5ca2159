"""Triton's kernels on Triton's interpreter, which computes with NumPy what a GPU would: values, on the CPU's tensors.

The interpreter must be chosen before triton is imported, hence the other process. It cannot see races, nor how the
kernels are compiled (test_triton_compiled.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
OPS = (
    *("philox_normal", "philox_bits", "group_norm_silu", "reverse_step", "bernoulli_step"),
    *("attention", "adamw_ema"),
)
HERE = Path(__file__).parent
LARGE = (
    "256x",
    "x256",
    "4x128x",
    "many_pixels",
    "64x1x32",
    "4096x20",
    "16x3x64",
    "T1024",
    "T256",
)  # cases that only take longer


def _run(*arguments: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("op", OPS)
def test_cases(op: str) -> None:
    """The cases of tests/ops/test_cases.py, on the triton backend."""
    chosen = " and not ".join([f"{op}-triton", *LARGE])
    _run("-k", chosen, str(HERE.parent / "ops" / "test_cases.py"))


@pytest.mark.parametrize("file", ["interpreted_triton.py", "interpreted_triton_attention.py"])
def test_what_the_cases_do_not_see(file: str) -> None:
    _run(str(HERE / file))


def test_updates_of_parameters() -> None:
    """Layouts, addresses aligned to nothing, NaN: the op's own tests, on the triton backend."""
    _run("-k", "triton and not two_hundred", str(HERE.parent / "ops" / "test_adamw_ema.py"))
