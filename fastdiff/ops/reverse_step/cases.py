"""Every way a sampler asks for a step, on images that break kernels: odd sizes, 1 to 4 channels, both layouts."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case, by_name
from fastdiff.ops.reverse_step import eager, reverse_step
from fastdiff.ops.reverse_step.reference import Arguments

# In the order of COLUMNS, and padding: three steps of a cosine-like process.
_ROWS = (
    (1.02, -0.2, 0.97, 0.02, -0.1, 0.05, 0.07, -6.1, -4.2, 1.0, 3.0, 0.0),
    (1.70, -1.4, 0.82, 0.15, -0.3, 0.20, 0.40, -2.4, -1.9, 1.0, 1.5, 0.0),
    (1.00, -0.01, 0.00, 1.00, 0.0, 0.00, 0.00, -9.6, -9.2, 0.0, 1.0, 0.0),
)
_SHARP_SEEDS = (-1, -(2**63), 2**63 - 1, 0x0123456789ABCDEF)


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, ...],
    variance: str = "none",
    wide: bool = False,
    channels_last: bool = False,
    model_channels_last: bool | None = None,
    guidance: bool = False,
    history: int = 0,
    noise: str | None = None,
    clip: bool = False,
    row: int = 1,
    table_dtype: torch.dtype = torch.float32,
    model_dtype: torch.dtype | None = None,
    state_float32: bool = False,
    stream: int = 0,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(shape))
    last = channels_last if model_channels_last is None else model_channels_last
    n, c, *rest = shape

    def tensor(channels: int, to: torch.dtype, last: bool, scale: float = 1.0) -> Tensor:
        t = (scale * torch.randn(n, channels, *rest, generator=g)).to(device, to)
        return t.to(memory_format=torch.channels_last) if last else t

    out_channels = c if variance == "none" and not wide else 2 * c
    model = functools.partial(tensor, out_channels, model_dtype or dtype, last)
    like_x = functools.partial(tensor, c, torch.float32 if state_float32 else dtype, channels_last)
    kwargs: dict[str, Any] = {
        "x": tensor(c, dtype, channels_last),
        "model_output": model(),
        "table": torch.tensor(_ROWS, dtype=table_dtype, device=device),
        "index": torch.tensor(row, device=device),
        "clip": clip,
        "variance": variance,
        "stream": stream,
    }
    if guidance:
        kwargs["uncond"] = model()
    for i in range(history):
        kwargs[f"h{i + 1}"] = like_x(scale=0.5)
    if noise == "given":
        kwargs["noise"] = like_x()
    if noise == "seeds":
        seeds = (_SHARP_SEEDS * math.ceil(n / 4))[:n]
        kwargs["seeds"] = torch.tensor(seeds, dtype=torch.int64, device=device)
    return kwargs


def _flops(
    clip: bool = False, guidance: bool = False, history: int = 0, noise: str | None = None, **options: Any
) -> int:
    """Operations per element: x0 and the update 3 each; clip 2, guidance 3, a history tensor 2; noise 2, drawing it
    (logarithm, root, cosine or sine, 2 products) 5, its learned standard deviation 4."""
    drawn = (2 if noise else 0) + (5 if noise == "seeds" else 0)
    learned = 4 if noise and options.get("variance", "none") != "none" else 0
    return 6 + 2 * clip + 3 * guidance + 2 * history + drawn + learned


def _differentiable(
    guidance: bool = False, history: int = 0, noise: str | None = None, **_: Any
) -> tuple[str, ...]:
    present = {"uncond": guidance, "h1": history > 0, "h2": history > 1, "noise": noise == "given"}
    return ("x", "model_output", *(name for name, is_given in present.items() if is_given))


def case(name: str, *, benchmark: bool = False, gradients: bool = False, **options: Any) -> Case:
    n, c, *rest = options["shape"]
    model_channels = c if options.get("variance", "none") == "none" else 2 * c
    channels = 3 * c + model_channels * (2 if options.get("guidance") else 1)  # x, x_next, x0, model, uncond
    return Case(
        name=name,
        op="reverse_step",
        fused=reverse_step,
        eager=by_name(eager.reverse_step, Arguments),
        baseline=by_name(eager.with_randn, Arguments),
        inputs=functools.partial(_inputs, **options),
        differentiable=_differentiable(**options) if gradients else (),
        elements=n * channels * math.prod(rest),
        flops=n * c * math.prod(rest) * _flops(**options),
        benchmark=benchmark,
    )


def _benchmarks() -> list[Case]:
    samplers: dict[str, dict[str, Any]] = {
        "ddim": {},
        "learned_range": {"variance": "learned_range", "noise": "seeds"},
        "guidance": {"variance": "learned_range", "noise": "seeds", "guidance": True},
    }
    return [
        case(
            f"{name}-{'x'.join(map(str, shape))}-{'channels_last' if last else 'contiguous'}",
            shape=shape,
            channels_last=last,
            clip=True,
            benchmark=True,
            **options,
        )
        for shape in ((16, 3, 64, 64), (4, 3, 256, 256), (64, 1, 32, 32))
        for name, options in samplers.items()
        for last in (False, True)
    ]


_LEARNED = {"variance": "learned_range", "noise": "seeds", "clip": True}

CASES = (
    case("plain", shape=(2, 3, 8, 8), gradients=True),
    case("clip-odd", shape=(3, 3, 7, 5), clip=True),
    case("clip-odd-channels_last", shape=(3, 3, 7, 5), clip=True, channels_last=True, gradients=True),
    case("std-seeds", shape=(4, 3, 8, 8), noise="seeds", table_dtype=torch.float64),
    case("std-given-channels_last", shape=(2, 4, 9, 9), noise="given", channels_last=True, gradients=True),
    case("learned-seeds", shape=(2, 2, 9, 11), variance="learned", noise="seeds", stream=2**32 - 1),
    case("learned_range-odd", shape=(5, 3, 13, 11), **_LEARNED),
    case("learned_range-odd-channels_last", shape=(5, 3, 13, 11), channels_last=True, **_LEARNED),
    case("learned_range-1-channel-channels_last", shape=(2, 1, 28, 28), channels_last=True, **_LEARNED),
    case("learned_range-2-channels-channels_last", shape=(2, 2, 17, 9), channels_last=True, **_LEARNED),
    case("learned_range-4-channels-channels_last", shape=(2, 4, 17, 9), channels_last=True, **_LEARNED),
    case("learned_range-5-channels-channels_last", shape=(2, 5, 6, 9), channels_last=True, **_LEARNED),
    case("learned_range-many-tiles", shape=(1, 3, 41, 37), **_LEARNED),
    case("learned_range-many-tiles-channels_last", shape=(1, 3, 41, 37), channels_last=True, **_LEARNED),
    case("learned_range-model-channels_last", shape=(2, 3, 9, 9), model_channels_last=True, **_LEARNED),
    case(
        "learned_range-x-channels_last",
        shape=(2, 3, 9, 9),
        channels_last=True,
        model_channels_last=False,
        **_LEARNED,
    ),
    case("last-step", shape=(2, 3, 8, 8), row=2, **_LEARNED),
    case("variance-unused", shape=(2, 3, 9, 7), wide=True, noise="seeds"),
    case("guidance", shape=(2, 3, 9, 9), guidance=True, clip=True),
    case(
        "guidance-learned_range-channels_last",
        shape=(2, 3, 9, 9),
        guidance=True,
        channels_last=True,
        **_LEARNED,
    ),
    case("guidance-variance-unused", shape=(2, 3, 9, 9), guidance=True, wide=True, channels_last=True),
    case("history", shape=(2, 3, 9, 9), history=1, row=0),
    case("two-histories-channels_last", shape=(2, 3, 9, 9), history=2, channels_last=True, row=0),
    case("everything", shape=(3, 3, 9, 11), history=2, guidance=True, gradients=True, **_LEARNED),
    case(
        "model-bfloat16",
        shape=(2, 3, 9, 9),
        model_dtype=torch.bfloat16,
        state_float32=True,
        history=1,
        **_LEARNED,
    ),
    case(
        "model-float16-channels_last",
        shape=(2, 3, 9, 9),
        model_dtype=torch.float16,
        channels_last=True,
        guidance=True,
        state_float32=True,
        noise="given",
        variance="learned",
    ),
    case("one-pixel", shape=(3, 3, 1, 1), **_LEARNED),
    case("one-dimension", shape=(3, 2, 21), **_LEARNED),
    case("no-pixel-dimension", shape=(3, 5), noise="seeds"),
    case("empty-batch", shape=(0, 3, 8, 8), **_LEARNED),
    case("empty-image", shape=(2, 3, 0, 8), **_LEARNED),
    *_benchmarks(),
)
