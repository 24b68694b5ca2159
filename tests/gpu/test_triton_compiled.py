"""Every Triton kernel, as production launches it, compiled without a GPU: it compiles, spills nothing, keeps its cap.

``make test`` compiles one configuration of each kernel, for Hopper; ``make proofs`` every configuration for every
architecture, the V100 among them, except for what is made of matrix products.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import toolchain

import fastdiff
from fastdiff.ops.cases import folders

pytest.importorskip("triton", reason="triton is not installed: pip install triton")


@dataclass(frozen=True)
class Module:
    """A module of kernels and what is expected of them."""

    name: str
    registers: int  # a thread, at most
    architectures: tuple[int, ...] = (90, 70, 80, 100)
    mma: bool = False  # tensor cores must be used, except for float32
    stack: int = 0  # bytes of local memory a thread, at most


MODULES = (
    Module("fastdiff.ops.philox.triton", registers=40),
    Module("fastdiff.ops.reverse_step.triton", registers=88),
    Module("fastdiff.ops.bernoulli_step.triton", registers=64),
    Module("fastdiff.ops.decision.triton", registers=96),
    # Two registers of the path for memory that is aligned to nothing are kept on the stack, on sm_80 alone.
    Module("fastdiff.ops.adamw_ema.triton", registers=96, stack=8),
    Module("fastdiff.ops.group_norm_silu.triton", registers=128),
    Module("fastdiff.ops.attention.triton", registers=255, architectures=(90, 100), mma=True),
    Module("fastdiff.ops.attention.triton:SMALL_CONFIGURATIONS", 255, architectures=(86, 80), mma=True),
    Module("fastdiff.ops.attention.triton:OTHER_CONFIGURATIONS", 255, architectures=(90, 86), mma=True),
)
OPS = Path(fastdiff.__file__).parent / "ops"
SCRIPT = Path(__file__).with_name("compile_triton.py")
VERSION = importlib.metadata.version("triton")
# Bytes of shared memory that a program may use, from CUDA's table of compute capabilities.
SHARED = {"sm_70": 96 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}


def test_every_module_is_listed() -> None:
    assert {m.name.partition(":")[0] for m in MODULES} == {
        f"fastdiff.ops.{f}.triton" for f in folders("triton")
    }


def _compile(modules: Sequence[Module], *options: str) -> list[dict[str, Any]]:
    wanted = [f"{m.name}={','.join(map(str, m.architectures))}" for m in modules]

    def work() -> list[dict[str, Any]]:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = str(toolchain.ROOT)
        command = [sys.executable, str(SCRIPT), *options, *wanted]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return toolchain.remembered(_sources(modules), ["triton", VERSION, *options, *wanted], work)


def _sources(modules: Sequence[Module]) -> list[Path]:
    folders = {OPS / m.name.split(".")[2] for m in modules}
    return [SCRIPT, OPS / "_triton.py", *(file for folder in folders for file in folder.glob("*.py"))]


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'kernel':40} {'arch':7} {'REG':>4} {'STACK':>5} {'SHARED':>6}  configuration")
    for r in rows:
        print(
            f"{r['kernel']:40} {r['arch']:7} {r['REG']:4} {r['STACK']:5} {r['SHARED']:6}  {r['configuration']}"
        )


def _check(module: Module, rows: list[dict[str, Any]]) -> None:
    for r in rows:
        assert r["STACK"] <= module.stack and r["LOCAL"] == 0, f"spills: {r}"
        assert r["REG"] <= module.registers, f"more than {module.registers} registers: {r}"
        assert not r["approximate_sine"], f"the sine is not accurate enough for noise: {r}"
        assert r["vectors"] or "ALIGNED=True" not in r["configuration"], f"not 16 bytes a thread: {r}"
        assert r["SHARED"] <= SHARED[r["arch"]], f"too much shared memory: {r}"
        is_float32 = r["configuration"].startswith("fp32")
        assert r["mma"] or is_float32 or not module.mma, f"no tensor cores: {r}"


def test_one_configuration_of_each_kernel() -> None:
    rows = _compile([m for m in MODULES if ":" not in m.name], "--one")
    _print(rows)
    for module in MODULES:
        of_module = [r for r in rows if r["module"] == module.name]
        assert of_module or ":" in module.name
        _check(module, of_module)


@pytest.mark.proof
@pytest.mark.parametrize(
    "module",
    [replace(m, architectures=(a,)) for m in MODULES for a in m.architectures],
    ids=lambda m: f"{m.name.split('ops.')[1]}-{m.architectures[0]}",
)
def test_every_configuration(module: Module) -> None:
    """Takes a quarter of an hour where nothing is known; tests/gpu/proven.json knows the kernels as they are."""

    def work() -> None:
        rows = _compile([module])
        _print(rows)
        assert {r["arch"] for r in rows} == {f"sm_{a}" for a in module.architectures}
        _check(module, rows)

    expected = f"{module} {SHARED}"
    sources = toolchain.digest(_sources([module]), ["triton", VERSION, expected])
    toolchain.prove(f"{module.name.split('ops.')[1]}-{module.architectures[0]}", sources, work)
