"""ADM's U-Nets with random weights: sampling and a training step, in guided-diffusion's precision and in bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.sides import Side, fresh
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.models import UNetConfig
from fastdiff.sampling import Sampler
from fastdiff.zoo import PRESETS
from parts.gpu_store import Context, first_line

PRESET_NAMES = ("adm-64", "adm-128", "adm-256")
BATCHES = (1, 8, 32)
COMPILED_BATCHES = (8,)  # compiling takes a minute a network and batch
TRAINING_BATCH = {"adm-64": 32, "adm-128": 16, "adm-256": 8, "tiny": 1}
STEPS = 4  # ancestral, learned variance: the step is what counts, not how many there are
ROUNDS = 5
FULL = 250  # steps of the images/s that are reported
TINY = UNetConfig(
    image_size=8,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_classes=3,
    learn_sigma=True,
)


_CONTIGUOUS, _LAST = torch.contiguous_format, torch.channels_last
SIDES = (
    Side("eager, guided-diffusion's fp16", "eager", _CONTIGUOUS, "adm-fp16"),
    Side("eager, bfloat16 channels_last", "eager", _LAST, "bfloat16"),
    Side("torch.compile, bfloat16 channels_last", "eager", _LAST, "bfloat16", compiled=True),
    Side("fastdiff, bfloat16", None, _LAST, "bfloat16", captured=True),
    Side("fastdiff, bfloat16, not captured", None, _LAST, "bfloat16"),
    Side("fastdiff, guided-diffusion's fp16", None, _LAST, "adm-fp16", captured=True),
)


def cast(preset: str, side: Side, device: str, dry: bool) -> Any:
    """The network as the side runs it."""
    config = TINY if preset == "tiny" else PRESETS[preset].model
    assert isinstance(config, UNetConfig)
    model = fresh(config, device)
    model.diffusion = DiffusionConfig(schedule="cosine", variance="learned_range")
    model = model.half_trunk() if side.precision == "adm-fp16" else model.bfloat16()
    model = model.to(memory_format=side.memory_format)
    if not side.compiled:
        return model
    torch.compiler.reset()
    # With CUDA graphs, as fastdiff's own loop; where autotuning would take longer than everything else here.
    how: dict[str, Any] = {"backend": "aot_eager"} if dry else {"mode": "reduce-overhead"}
    return torch.compile(model, dynamic=False, **how)


def each(
    context: Context, sides: Sequence[Side], make: Callable[[Side], Callable[[], Tensor]]
) -> tuple[dict, dict]:
    """A call of each side that works, and why the others do not: a first call builds, compiles and captures."""
    calls: dict[str, Callable[[], Tensor]] = {}
    wrong: dict[str, str] = {}
    for side in sides:
        try:
            with side.context():
                call = make(side)
                result = call()
            if result.isfinite().all():
                calls[side.name] = side.call(call)
            else:
                wrong[side.name] = "its result is not finite"
        except Exception as error:
            wrong[side.name] = first_line(error)
            if context.device != "cpu":
                torch.cuda.empty_cache()
    return calls, wrong


def measure_sampling(context: Context, preset: str, batch: int, sides: Sequence[Side], key: str) -> None:
    samplers: dict[str, Sampler] = {}

    def make(side: Side) -> Callable[[], Tensor]:
        model = cast(preset, side, context.device, context.dry)
        sampler = Sampler(
            model,
            sampler="ancestral",
            steps=STEPS,
            memory_format=side.memory_format,
            device=context.device,
            capture=side.captured,
        )
        samplers[side.name] = sampler
        return functools.partial(sampler, batch, classes=1, progress=False)

    try:
        calls, wrong = each(context, sides, make)
        for side in [s for s in sides if s.name in calls and s.captured and context.device != "cpu"]:
            if not samplers[side.name].captured:
                del calls[side.name]
                wrong[side.name] = "it was not captured; the log says why"
        times = context.interleave(calls, ROUNDS)
    finally:
        for sampler in samplers.values():
            sampler.close()
    row = {"preset": preset, "batch": batch, "steps": STEPS, "wrong": wrong}
    row["seconds"] = {name: asdict(timing) for name, timing in times.items()}
    row["images_per_second"] = {n: batch * STEPS / t.median / FULL for n, t in times.items()}
    context.store.put(key, row)


def training_step(model: Any, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Forward, loss and backward; the optimizer is the same for all, and left out."""
    loss = model(x, t, y).float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def measure_training(context: Context, preset: str, sides: Sequence[Side], key: str) -> None:
    batch = TRAINING_BATCH[preset]

    def make(side: Side) -> Callable[[], Tensor]:
        model = cast(preset, side, context.device, context.dry).train()
        size = (model.config.in_channels, model.config.image_size, model.config.image_size)
        x = torch.randn(batch, *size, device=context.device).contiguous(memory_format=side.memory_format)
        t = torch.full((batch,), 500, device=context.device)
        return functools.partial(training_step, model, x, t, torch.ones_like(t))

    with torch.enable_grad():
        calls, wrong = each(context, sides, make)
        times = context.interleave(calls, ROUNDS)
    row = {"preset": preset, "batch": batch, "wrong": wrong}
    row["seconds"] = {name: asdict(timing) for name, timing in times.items()}
    context.store.put(key, row)


def run_sampling(context: Context) -> None:
    """All without the compiler first, and with it in rows of their own, beside the sides to compare it with."""
    plain = [s for s in SIDES if not s.compiled]
    presets = ("tiny",) if context.dry else PRESET_NAMES
    for part, sides, batches, seconds in (
        ("models", plain, (2,) if context.dry else BATCHES, 20),
        ("models-compile", SIDES[1:4], (1,) if context.dry else COMPILED_BATCHES, 100),
    ):
        for preset in presets:
            for batch in batches:
                key = f"{part}/{preset}/batch{batch}"
                measure = functools.partial(measure_sampling, context, preset, batch, sides, key)
                context.measured(key, 0 if context.dry else seconds, measure)


def run_training(context: Context) -> None:
    plain = [SIDES[i] for i in (0, 1, 3)]
    presets = ("tiny",) if context.dry else PRESET_NAMES
    for part, sides, names, seconds in (
        ("training", plain, presets, 15),
        ("training-compile", SIDES[1:4], presets[:1], 150),
    ):
        for preset in names:
            key = f"{part}/{preset}"
            measure = functools.partial(measure_training, context, preset, sides, key)
            context.measured(key, 0 if context.dry else seconds, measure)
