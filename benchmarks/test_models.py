"""Whole U-Nets with pytest-benchmark: a forward pass, a training step's passes, a short sampling run.

pytest benchmarks/test_models.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiling import Compiler
from whole_models import BATCH, SIDES, Setting, forward, forward_backward, setting

import fastdiff

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILED = ("fashion-mnist",)  # the larger network takes the compiler minutes

PARAMETERS = [(preset, side) for preset in BATCH for side in SIDES]
PARAMETERS += [(preset, "compiled") for preset in COMPILED]
pytestmark = pytest.mark.parametrize(("preset", "side"), PARAMETERS)


def _note(benchmark: Any, what: str, preset: str, side: str) -> None:
    benchmark.group = f"{what} {preset}"
    benchmark.extra_info |= {"kind": "model", "what": what, "case": preset, "dtype": "f32", "side": side}
    benchmark.extra_info["images"] = BATCH[preset]


def _ready(preset: str, side: str, compiler: Compiler, call: Callable[[Setting], Any]) -> Setting:
    """A side; "compiled" is eager PyTorch in channels_last, compiled."""
    if side != "compiled":
        return setting(preset, side, DEVICE)
    s = setting(preset, "eager-channels_last", DEVICE)
    return s._replace(model=compiler(s.model, lambda compiled: call(s._replace(model=compiled))))


def test_forward(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    _note(benchmark, "forward", preset, side)
    benchmark(forward, _ready(preset, side, compiler, forward))


def test_forward_backward(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    _note(benchmark, "forward and backward", preset, side)
    benchmark(forward_backward, _ready(preset, side, compiler, forward_backward))


def test_sampling(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    _note(benchmark, "sampling", preset, side)
    s = setting(preset, "eager-channels_last" if side == "compiled" else side, DEVICE)
    sampler = fastdiff.Sampler(s.model, sampler="dpmpp", steps=4, memory_format=s.memory_format)

    def sample() -> Any:
        return sampler(BATCH[preset], classes=s.y, progress=False)

    def compiled_sample(compiled: Any) -> Any:
        s.model.denoise = compiled
        return sample()

    with s.context(), sampler:
        if side == "compiled":
            compiler(s.model.denoise, compiled_sample)
        benchmark(sample)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["images/s"] = round(BATCH[preset] / benchmark.stats["median"], 3)
