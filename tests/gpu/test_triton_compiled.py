"""Every Triton kernel, as production launches it, compiled without a GPU: it compiles, spills nothing, keeps its cap.

All configurations for Hopper; every few of them for the other architectures (compile_triton.py says why), the V100
among them, except for what is made of matrix products.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fastdiff

pytest.importorskip("triton", reason="triton is not installed: pip install triton")


@dataclass(frozen=True)
class Module:
    """A module of kernels and what is expected of them."""

    name: str
    registers: int  # a thread, at most
    architectures: tuple[int, ...] = (90, 70, 80, 100)
    mma: bool = False  # tensor cores must be used, except for float32


MODULES = (
    Module("fastdiff.ops.philox.triton", registers=40),
    Module("fastdiff.ops.reverse_step.triton", registers=80),
    Module("fastdiff.ops.bernoulli_step.triton", registers=64),
    Module("fastdiff.ops.decision.triton", registers=96),
    Module("fastdiff.ops.adamw_ema.triton", registers=96),
    Module("fastdiff.ops.group_norm_silu.triton", registers=128),
    Module("fastdiff.ops.attention.triton", registers=255, architectures=(90, 100), mma=True),
    Module("fastdiff.ops.attention.triton:SMALL_CONFIGURATIONS", 255, architectures=(86, 80), mma=True),
    Module("fastdiff.ops.attention.triton:OTHER_CONFIGURATIONS", 255, architectures=(90, 86), mma=True),
)
# Bytes of shared memory that a program may use, from CUDA's table of compute capabilities.
SHARED = {"sm_70": 96 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


def _compile(module: Module) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(fastdiff.__file__).parents[1])
    command = [sys.executable, str(Path(__file__).with_name("compile_triton.py")), module.name]
    command += map(str, module.architectures)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name.split("ops.")[1])
def test_compiles_without_spills(module: Module) -> None:
    rows = _compile(module)
    print(f"\n{'kernel':40} {'arch':7} {'REG':>4} {'STACK':>5} {'SHARED':>6}  configuration")
    for r in rows:
        print(
            f"{r['kernel']:40} {r['arch']:7} {r['REG']:4} {r['STACK']:5} {r['SHARED']:6}  {r['configuration']}"
        )
    assert {r["arch"] for r in rows} == {f"sm_{a}" for a in module.architectures}
    for r in rows:
        assert r["STACK"] == 0 and r["LOCAL"] == 0, f"spills: {r}"
        assert r["REG"] <= module.registers, f"more than {module.registers} registers: {r}"
        assert not r["approximate_sine"], f"the sine is not accurate enough for noise: {r}"
        assert r["vectors"] or "ALIGNED=True" not in r["configuration"], f"not 16 bytes a thread: {r}"
        assert r["SHARED"] <= SHARED[r["arch"]], f"too much shared memory: {r}"
        is_float32 = r["configuration"].startswith("fp32")
        assert r["mma"] or is_float32 or not module.mma, f"no tensor cores: {r}"
