"""The parts of ``make gpu`` that are programs: the build, the test suite on the GPU, NVIDIA's sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import torch

from parts.gpu_store import ROOT, Context

# What a GPU decides comes first, so that a slice of a run sees it. Each leaves out those before it.
GROUPS = (
    "tests/ops/test_cases.py",
    "tests/gpu",
    "tests/ops",
    "tests/sampling",
    "tests/models",
    "tests/decision",
)
GROUPS += ("tests",)
DRY_GROUPS = ("tests/gpu/test_on_gpu.py",)
# A few small inputs of each op: under the sanitizer everything takes minutes.
CHECKED = (
    "(cuda or triton) and (f32 or bf16) and (plain or odd or one_pixel or one_token or T65 or std-seeds)"
)
PYTEST = ("-o", "addopts=-q -p no:cacheprovider")
TOOLS = ("memcheck", "racecheck")


def _program(command: list[str], seconds: float, env: dict[str, str] | None = None) -> dict[str, Any]:
    """How a program ended; one that takes too long is stopped."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        start_new_session=True,  # its own children are stopped with it
    )
    try:
        said, _ = process.communicate(timeout=max(1.0, seconds))
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        code = None
    return {"ok": code == 0, "code": code, "seconds": time.monotonic() - start, "tail": said[-4000:]}


def run_build(context: Context) -> None:
    """Kernels for this card only, unless TORCH_CUDA_ARCH_LIST says otherwise: compiling for others takes minutes.

    Every time: the results may come from another machine, and what is built already is not built again.
    """
    key = "build/extensions"
    if context.dry:
        return
    env = {}
    if context.device != "cpu" and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        env["TORCH_CUDA_ARCH_LIST"] = ".".join(map(str, torch.cuda.get_device_capability()))
    row = _program([sys.executable, "setup.py", "build_ext", "--inplace"], context.left, env)
    _keep(context, key, row)


def _keep(context: Context, key: str, row: dict[str, Any]) -> None:
    """A row that counts as done, or what is to be done again next time."""
    if row["ok"]:
        context.store.put(key, row)
        return
    what = "stopped: out of time" if row["code"] is None else f"exit code {row['code']}"
    what += "".join(f", {n} {kind}" for kind, n in row.get("counts", {}).items())
    context.store.rows.pop(key, None)
    context.store.skip(key, f"{what}\n{row['tail'][-2000:]}")
    print(f"{key}: {what}\n{row['tail'][-1500:]}")


def summary(printed: str) -> dict[str, int]:
    """pytest's last line, counted: {"passed": 12, "failed": 1, ...}; the names of what failed are in the tail."""
    words = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)\b", printed[-2000:])
    return {kind.rstrip("s") if kind.startswith("error") else kind: int(n) for n, kind in words}


def run_tests(context: Context) -> None:
    """Each group is a row, so that a run can go on where it was cut off; failures stay to be run again."""
    groups = DRY_GROUPS if context.dry else GROUPS
    for i, group in enumerate(groups):
        key = f"tests/{group}"
        if not context.wanted(key, 20):
            continue
        command = [sys.executable, "-m", "pytest", group, *PYTEST]
        command += ["-rfE", "--durations=5", "--tb=short", "--maxfail=20"]
        command += [f"--ignore={other}" for other in groups[:i]]
        # Otherwise cuBLAS warns at every call that it is not deterministic.
        row = _program(command, context.left, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
        row |= {"counts": summary(row["tail"])}
        row["ok"] = row["ok"] or row["code"] == 5  # pytest: nothing was collected
        _keep(context, key, row)


def run_sanitizer(context: Context) -> None:
    """compute-sanitizer on a few cases of each op, where it is installed."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if context.dry or context.device == "cpu" or tool is None:
        context.store.skip("sanitizer/all", "compute-sanitizer is not here" if tool is None else "no GPU")
        return
    for name in TOOLS:
        key = f"sanitizer/{name}"
        if not context.wanted(key, 20):
            continue
        command = [tool, f"--tool={name}", "--error-exitcode=77", "--target-processes=all"]
        command += [sys.executable, "-m", "pytest", "tests/ops/test_cases.py", *PYTEST, "-k", CHECKED, "-x"]
        # One allocation a tensor, so that memcheck sees where each ends.
        row = _program(command, context.left, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        _keep(context, key, row | {"counts": summary(row["tail"])})
