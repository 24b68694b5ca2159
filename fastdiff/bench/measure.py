"""Timing of a preset's training steps on this device: eager PyTorch, ``torch.compile`` and fastdiff in alternation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from fastdiff.bench.clock import Turn, repeated, take_turns
from fastdiff.bench.count import Compute, count
from fastdiff.bench.steps import Options, sides
from fastdiff.bench.v100 import (
    SECONDS_PER_DAY,
    equivalent_v100_days,
    model_flops_utilisation,
    normalised_v100_days,
)
from fastdiff.errors import FastdiffError
from fastdiff.models import build_model
from fastdiff.models.config import GROUPS, UNetConfig
from fastdiff.sampling.api import Sampler
from fastdiff.zoo import PRESETS

IMAGES = 1e6  # that the converted days are given for
_PEAK = "matrix product"
_STEPS = 2  # of the sampling that is timed


@dataclass(frozen=True)
class Row:
    """Training by one implementation; days are for a million images, ``equivalent`` and ``normalised`` in V100-days."""

    side: str
    step_seconds: float  # median
    images_per_second: float
    mfu: float  # of the measured matrix peak
    equivalent: float  # (a) equivalent work, from the count alone
    normalised: float  # (b) measured time, weighted by peak and utilisation
    device_days: float  # (c) measured time as it is

    @property
    def v100s(self) -> float:
        """How many V100s this device is worth with this software: (a) over (c)."""
        return self.equivalent / self.device_days


@dataclass(frozen=True)
class Result:
    """A preset's measurement. ``peak``: operations a second of a large matrix product, its fastest turn."""

    preset: str
    config: UNetConfig
    compute: Compute
    options: Options
    peak: float
    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()


def reduced(config: UNetConfig, width: int) -> UNetConfig:
    """The same network with ``model_channels`` = width and heads of at most ``width`` channels.

    Raises:
        FastdiffError: a width that leaves a level's channels indivisible by the norm's groups.
    """
    heads = min(config.num_head_channels, width) if config.num_head_channels > 0 else config.num_head_channels
    return replace(config, model_channels=width, num_head_channels=heads)


def smallest_width(config: UNetConfig) -> int:
    """The least model_channels at which every level has a multiple of 32 channels."""
    width = GROUPS
    while any(multiple * width % GROUPS for multiple in config.channel_mult):
        width += GROUPS
    return width


def measure(preset: str, options: Options, device: torch.device | str = "cpu") -> Result:
    """Time training steps: loss, backward, clipping, AdamW and the moving average, on random images.

    All sides start from the same weights and take turns, so that a shared machine slows all alike; a matrix product,
    whose fastest turn is the peak, takes its turn among them.

    Raises:
        FastdiffError: an unknown preset, or a classifier.
    """
    config = _config(preset, options.width)
    device = torch.device(device)
    found, skipped = sides(config, PRESETS[preset].diffusion, options, device)
    size, products = (2048, 1) if device.type == "cpu" else (8192, 16)  # a GPU's clock takes some to rise
    a, b = (torch.randn(size, size, device=device, dtype=options.dtype) for _ in range(2))
    calls = {_PEAK: lambda: [a @ b for _ in range(products)], **found}
    samples = take_turns({name: repeated(call) for name, call in calls.items()}, options.rounds)
    peak = 2 * size**3 * products / min(samples.pop(_PEAK))  # a peak is the best that was seen
    compute = count(config)
    rows = tuple(_row(side, statistics.median(s), options, compute, peak) for side, s in samples.items())
    return Result(preset, config, compute, options, peak, rows, tuple(skipped))


def sampling_speeds(
    presets: Iterable[str], options: Options, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Multiply-accumulates a second that fastdiff reaches in sampling with each model, on random weights.

    The models take turns; each samples ``options.batch`` images in two steps by its usual sampler.
    """
    turns, macs = dict[str, Turn](), dict[str, float]()
    for name in dict.fromkeys(presets):
        config = _config(name, options.width)
        model = build_model(config).to(device).eval()
        precision = "bfloat16" if options.dtype is torch.bfloat16 else None
        sampler = Sampler(model, steps=_STEPS, diffusion=PRESETS[name].diffusion, precision=precision)
        classes = None if config.num_classes is None else 0
        turns[name] = repeated(
            lambda sampler=sampler, classes=classes: sampler(
                options.batch, classes=classes, progress=False
            ).cpu()
        )
        macs[name] = count(config).macs * options.batch * _STEPS
    samples = take_turns(turns, options.rounds)
    return {name: macs[name] / statistics.median(seconds) for name, seconds in samples.items()}


def _config(preset: str, width: int | None) -> UNetConfig:
    if preset not in PRESETS:
        raise FastdiffError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    config = PRESETS[preset].model
    if not isinstance(config, UNetConfig):
        raise FastdiffError(f"{preset} is a classifier; training steps are measured of denoisers")
    return config if width is None else reduced(config, width)


def _row(side: str, seconds: float, options: Options, compute: Compute, peak: float) -> Row:
    speed = options.batch / seconds
    mfu = model_flops_utilisation(speed, compute.macs, peak)
    whole = IMAGES / speed
    return Row(
        side=side,
        step_seconds=seconds,
        images_per_second=speed,
        mfu=mfu,
        equivalent=equivalent_v100_days(IMAGES, compute.macs, options.utilisation),
        normalised=normalised_v100_days(whole, peak, mfu, options.utilisation),
        device_days=whole / SECONDS_PER_DAY,
    )
