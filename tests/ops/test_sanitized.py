"""AddressSanitizer and UBSan: the CPU's kernels and the door on all cases, on hostile states and on tampered calls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "cpu_avx2"  # every x86-64 machine of today runs it, and its vectors do not fill the lines of memory
# As setup.py has it, with what is wanted here in place of optimisation; the link keeps the names of functions. bfloat16
# takes the products of a processor with AMX, as loops.
SANITIZE = "-g -fsanitize=address,undefined -fno-sanitize-recover=undefined -DFASTDIFF_TILES"

pytestmark = [pytest.mark.proof, pytest.mark.xdist_group("sanitized")]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the sanitized libraries are, built where a source is newer."""
    plans = sorted(ROOT.glob("build/temp*/build.ninja"))
    if not plans or f"{LIBRARY}.so" not in plans[0].read_text():
        pytest.skip("setup.py build_ext --inplace has not been run here, or has no AVX2")
    folder = ROOT / "build" / "sanitized"
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    plan = plans[0].read_text().replace("-O3", "-O1")
    plan = re.sub(r"^cxx = .*$", f"cxx = g++ {SANITIZE}", plan, flags=re.MULTILINE)
    plan = re.sub(r"^(objects|builddir) = .*$", r"\1 = build/sanitized", plan, flags=re.MULTILINE)
    plan = re.sub(r"^build \S*fastdiff/lib/", "build build/sanitized/lib/", plan, flags=re.MULTILINE)
    (folder / "build.ninja").write_text(re.sub(r" -s$", "", plan, flags=re.MULTILINE))
    targets = [f"build/sanitized/lib/{name}.so" for name in (LIBRARY, "ops")]
    ninja = [Path(sys.executable).with_name("ninja"), "-f", folder / "build.ninja", "--quiet"]
    subprocess.run([*ninja, *targets], cwd=ROOT, check=True)
    assert all(b"__asan_init" in (ROOT / target).read_bytes() for target in targets)
    return folder / "lib"


def _run(folder: Path, *arguments: str) -> None:
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}.so"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("g++ has no libasan or no libubsan")
    environment = {
        **os.environ,
        "FASTDIFF_LIBRARIES": str(folder),
        "LD_PRELOAD": " ".join(runtimes),
        # Python keeps memory to its end. A kernel that asks for too much is told so, as it is without a sanitizer.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:faulthandler", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


def test_cases(folder: Path) -> None:
    chosen = (
        "cpu and not x256x and not 4x128x and not T1024 and not 16x3x64"  # without what only takes longer
    )
    _run(folder, "-k", chosen, "tests/ops/test_cases.py")


def test_tampered_calls_and_hostile_states(folder: Path) -> None:
    _run(folder, "tests/fuzz/test_fuzz_ops.py", "tests/ops/test_states.py")


def test_what_the_cases_do_not_see(folder: Path) -> None:
    """The ops' own tests: strides, sizes and threads."""
    chosen = "not subprocess and not speed"
    names = (
        "attention",
        "conv2d",
        "conv2d_direct",
        "conv2d_weight",
        "group_norm_silu",
        "adamw_ema",
        "reverse_step",
        "bernoulli_step",
    )
    _run(folder, "-k", chosen, *(f"tests/ops/test_{name}.py" for name in names))
