"""The emulation itself: a GPU's threads as fibers, in any order, under sanitizers.

Values, gradients and noise of the CUDA kernels are tested beside those of the other backends, by ``backends.each``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toolchain

CASE_TESTS = Path(__file__).parents[1] / "ops" / "test_cases.py"


def _run_cases(chosen: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-k", chosen, str(CASE_TESTS)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.mark.proof
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_cases_in_an_order_of_threads(order: str) -> None:
    """The order is shuffled otherwise (conftest.py)."""
    _run_cases("emulation", FASTDIFF_EMULATION_ORDER=order)


def _sanitized(chosen: str) -> None:
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = found.stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("g++ has no libasan")
    library = toolchain.build_emulated(*toolchain.SANITIZE)
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    _run_cases(
        f"emulation and {chosen}",
        FASTDIFF_EMULATION_LIBRARY=str(library),
        LD_PRELOAD=runtime,
        ASAN_OPTIONS=options,
    )


@pytest.mark.proof
def test_cases_touch_no_memory_of_others(emulated_library: Path) -> None:
    """AddressSanitizer and UBSan."""
    _sanitized("(bf16 or f32) and (odd or 3_a_group or one or guidance or D96 or everything)")


def test_emulation_tells_of_threads_that_wait_for_ever(tmp_path: Path) -> None:
    """A barrier that only half of the threads reach."""
    source = tmp_path / "stuck.cu"
    source.write_text(
        '#include "cuda/launch.cuh"\n'
        "__global__ void kernel(int*) { if (threadIdx.x < 16) __syncthreads(); else fastdiff::cluster_sync(); }\n"
        "int main() { int* none = nullptr;"
        " return fastdiff::launch(kernel, fastdiff::Launch{dim3{1}, 32}, nullptr, none); }\n"
    )
    program = tmp_path / "stuck"
    include = f"-I{toolchain.ROOT / 'csrc'}"
    subprocess.run(["g++", "-std=c++17", include, "-x", "c++", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode != 0 and "32 threads wait at barriers" in done.stderr
