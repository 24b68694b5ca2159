"""What a step of each preset costs: counted once, so that a list of them is quick."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from fastdiff.bench.ceilings import ceilings
from fastdiff.bench.count import Compute

FILE = Path(__file__).resolve().parent.parent / "assets" / "costs.json"
# Seconds of a step are 2 MACs / (SHARE x operations a second of a large float32 product). MACs are those of direct
# convolutions, of which Winograd's algorithm does less than half: hence more than 1 on a CPU (docs/cpu.md). On a GPU
# the share is that of a batch that fills it, in float32.
SHARE = {"cpu": 1.3, "cuda": 0.4}


@cache
def costs() -> dict[str, Compute]:
    """The count of every preset, as benchmarks/checkpoints.py has written it."""
    return {name: Compute(**row) for name, row in json.loads(FILE.read_text())["presets"].items()}


@cache
def macs_per_second(device: str) -> float:
    """Multiply-accumulates a second that a network's step is estimated to reach: from a product, timed now."""
    kind = torch.device(device).type
    size = 1024 if kind == "cpu" else 4096
    found = ceilings(device, copies={}, size=size, dtypes=("float32",), rounds=3)
    return SHARE[kind] * found["matmul_gflops"]["float32"] * 1e9 / 2
