"""Whole U-Nets with pytest-benchmark: a forward pass, a training step's passes, a short sampling run.

pytest benchmarks/test_models.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops import NETWORKS, forward, forward_backward
from parts.compiler import Compiler

import fastdiff
from fastdiff.bench.machine import default_device
from fastdiff.bench.sides import SIDES, Network, network

DEVICE = default_device()
COMPILED = ("fashion-mnist",)  # the larger network takes the compiler minutes

PARAMETERS = [
    (preset, name)
    for preset in NETWORKS
    for name, side in SIDES.items()
    if not side.compiled or preset in COMPILED
]
pytestmark = pytest.mark.parametrize(("preset", "side"), PARAMETERS)


def _note(benchmark: Any, what: str, preset: str, side: str) -> None:
    benchmark.group = f"{what} {preset}"
    benchmark.extra_info |= {"kind": "model", "what": what, "case": preset, "dtype": "float32", "side": side}
    benchmark.extra_info["images"] = NETWORKS[preset]


def _ready(preset: str, side: str) -> Network:
    return network(preset, NETWORKS[preset], DEVICE).cast(torch.float32, SIDES[side].memory_format)


def _benchmark(
    benchmark: Any, compiler: Compiler, call: Callable[[Network], Any], preset: str, side: str
) -> None:
    net = _ready(preset, side)
    with SIDES[side].context():
        if SIDES[side].compiled:
            model = compiler.compiled(net.model, lambda model: call(Network(model, net.inputs)))
            net = Network(model, net.inputs)
        benchmark(call, net)


def test_forward(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    _note(benchmark, "forward", preset, side)
    _benchmark(benchmark, compiler, forward, preset, side)


def test_forward_backward(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    _note(benchmark, "forward and backward", preset, side)
    _benchmark(benchmark, compiler, forward_backward, preset, side)


def test_sampling(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    _note(benchmark, "sampling", preset, side)
    chosen, net = SIDES[side], _ready(preset, side)
    classes = net.inputs[2] if len(net.inputs) > 2 else None
    sampler = fastdiff.Sampler(net.model, sampler="dpmpp", steps=4, memory_format=chosen.memory_format)

    def sample() -> Any:
        return sampler(NETWORKS[preset], classes=classes, progress=False)

    def compiled_sample(compiled: Any) -> Any:
        net.model.denoise = compiled
        return sample()

    with chosen.context(), sampler:
        if chosen.compiled:
            compiler.compiled(net.model.denoise, compiled_sample)
        benchmark(sample)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["images/s"] = round(NETWORKS[preset] / benchmark.stats["median"], 3)
