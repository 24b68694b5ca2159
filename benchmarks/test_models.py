"""Whole U-Nets with pytest-benchmark: a forward pass, a training step's passes, a short sampling run.

pytest benchmarks/test_models.py --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from whole_models import BATCH, SIDES, forward, forward_backward, setting

import fastdiff

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = [pytest.mark.parametrize("preset", BATCH), pytest.mark.parametrize("side", SIDES)]


def test_forward(benchmark: Any, preset: str, side: str) -> None:
    benchmark.group = f"forward {preset}"
    benchmark(forward, setting(preset, side, DEVICE))


def test_forward_backward(benchmark: Any, preset: str, side: str) -> None:
    benchmark.group = f"forward and backward {preset}"
    benchmark(forward_backward, setting(preset, side, DEVICE))


def test_sampling(benchmark: Any, preset: str, side: str) -> None:
    benchmark.group = f"sampling {preset}"
    s = setting(preset, side, DEVICE)
    sampler = fastdiff.Sampler(s.model, sampler="dpmpp", steps=4, memory_format=s.memory_format)
    with s.context(), sampler:
        benchmark(sampler, BATCH[preset], classes=s.y, progress=False)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["images/s"] = round(BATCH[preset] / benchmark.stats["median"], 3)
