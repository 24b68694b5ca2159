"""Whole U-Nets and a short sampling run with pytest-benchmark: eager PyTorch beside fastdiff.

pytest benchmarks/test_models.py --benchmark-group-by=func,param:preset
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.models import UNet, UNetConfig
from fastdiff.zoo import PRESETS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = {"fashion-mnist": 16, "ddpm-cifar10": 4}
# Eager in the layout that a user has without asking, and in the one that is fastest on most machines.
SIDES = {
    "eager": ("eager", torch.contiguous_format),
    "eager-channels_last": ("eager", torch.channels_last),
    "fastdiff": (None, torch.channels_last),
}

pytestmark = [pytest.mark.parametrize("preset", BATCH), pytest.mark.parametrize("side", SIDES)]


def _model(preset: str, memory_format: torch.memory_format) -> Any:
    config = PRESETS[preset].model
    assert isinstance(config, UNetConfig)
    torch.manual_seed(0)
    model: Any = UNet(config).to(DEVICE).eval()
    model.diffusion = PRESETS[preset].diffusion
    return model.to(memory_format=memory_format)


def _backend(name: str | None) -> Any:
    return use_backend(name) if name else contextlib.nullcontext()


def _labels(model: Any, n: int) -> torch.Tensor | None:
    classes = model.config.num_classes
    return None if classes is None else torch.arange(n, device=DEVICE) % classes


def test_forward(benchmark: Any, preset: str, side: str) -> None:
    backend, memory_format = SIDES[side]
    model, n = _model(preset, memory_format), BATCH[preset]
    size = model.config.image_size
    x = torch.randn(n, model.config.in_channels, size, size, device=DEVICE).to(memory_format=memory_format)
    t, y = torch.full((n,), 500, device=DEVICE), _labels(model, n)
    with torch.inference_mode(), _backend(backend):
        benchmark(model, x, t, y)


def test_sampling(benchmark: Any, preset: str, side: str) -> None:
    backend, memory_format = SIDES[side]
    model, n = _model(preset, memory_format), BATCH[preset]
    options = {"sampler": "dpmpp", "steps": 4, "progress": False, "memory_format": memory_format}
    with _backend(backend):
        benchmark(fastdiff.sample, model, n, classes=_labels(model, n), **options)
    benchmark.extra_info["images/s"] = round(n / benchmark.stats["median"], 3)
