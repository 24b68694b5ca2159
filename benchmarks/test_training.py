"""Whole training steps with pytest-benchmark: loss, backward, clipping, AdamW and the moving average.

    pytest benchmarks/test_training.py --benchmark-group-by=group

The sides are those of ``fastdiff bench v100-days --measure``, which takes turns and converts into V100-days.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parts.compiler import Compiler

from fastdiff.bench.machine import default_device
from fastdiff.bench.measure import reduced
from fastdiff.bench.sides import SIDES
from fastdiff.bench.steps import Options, make_step
from fastdiff.models import UNetConfig
from fastdiff.zoo import PRESETS

DEVICE = torch.device(default_device())
BATCH = {"fashion-mnist": 8, "adm-64": 2}
WIDTH = {"adm-64": 32}  # on a CPU: model_channels instead of the preset's
COMPILED = ("fashion-mnist",)  # the larger network takes the compiler minutes

PARAMETERS = [
    (preset, side) for preset in BATCH for side in SIDES if side != "torch.compile" or preset in COMPILED
]


@pytest.mark.parametrize(("preset", "side"), PARAMETERS)
def test_step(benchmark: Any, compiler: Compiler, preset: str, side: str) -> None:
    config = PRESETS[preset].model
    assert isinstance(config, UNetConfig)
    name = preset
    if DEVICE.type == "cpu" and preset in WIDTH:
        config, name = reduced(config, WIDTH[preset]), f"{preset} at width {WIDTH[preset]}"
    benchmark.group = f"training step {name}"
    benchmark.extra_info |= {"kind": "training", "what": "training step", "case": name, "dtype": "float32"}
    benchmark.extra_info |= {"side": side, "images": BATCH[preset]}
    step = make_step(side, config, PRESETS[preset].diffusion, Options(batch=BATCH[preset]), DEVICE)
    if side == "torch.compile":
        compiler.warm(step)
    benchmark(step)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["images/s"] = round(BATCH[preset] / benchmark.stats["median"], 3)
