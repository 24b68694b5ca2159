"""The optimizer's step over a whole model's parameters, in place: cases of ``adamw_ema`` for benchmarks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastdiff.models import build_model
from fastdiff.ops import AdamWHyper, adamw_ema
from fastdiff.ops._case import Case
from fastdiff.ops.adamw_ema.cases import eager_step
from fastdiff.zoo import PRESETS

_FACTOR = 0.999999  # close to 1: the eager side scales its gradients in place, again at each call
_DECAYS = (0.9999, 0.999)


def _inputs(
    _: torch.dtype, device: str, *, preset: str, averages: int, clip: bool, low: bool
) -> dict[str, Any]:
    """Parameters, gradients, moments, step counts, averages, all in float32; clipping's norm is left out."""
    g = torch.Generator().manual_seed(0)

    def random() -> list[Tensor]:
        return [torch.randn(shape, generator=g).to(device) for shape in _shapes(preset)]

    params = random()
    return {
        "params": params,
        "grads": random(),
        "exp_avg": random(),
        "exp_avg_sq": [t.square() for t in random()],
        "steps": [torch.zeros((), device=device) for _ in params],
        "emas": [[p.clone() for p in params] for _ in range(averages)],
        "low": [p.bfloat16() for p in params] if low else [],
        "factor": torch.tensor(_FACTOR, device=device) if clip else None,
    }


def _shapes(preset: str) -> list[torch.Size]:
    with torch.device("meta"):
        return [p.shape for p in build_model(PRESETS[preset].model).parameters()]


def _fused(params, grads, exp_avg, exp_avg_sq, steps, emas, low, factor) -> Tensor:
    hyper = AdamWHyper(1e-4, decays=_DECAYS[: len(emas)])
    adamw_ema(params, grads, exp_avg, exp_avg_sq, steps, hyper, emas=emas, low=low, grad_factor=factor)
    return params[0]


@torch.no_grad()
def _eager(params, grads, exp_avg, exp_avg_sq, steps, emas, low, factor) -> Tensor:
    """Fused AdamW; the gradient is scaled in place, as clip_grad_norm_ does it."""
    if factor is not None:
        torch._foreach_mul_(grads, factor)
    hyper = AdamWHyper(1e-4, decays=_DECAYS[: len(emas)])
    eager_step(params, grads, exp_avg, exp_avg_sq, steps, hyper, emas=emas, low=low, grad_factor=None)
    return params[0]


def _case(name: str, preset: str, averages: int = 1, clip: bool = True, low: bool = False) -> Case:
    count = sum(shape.numel() for shape in _shapes(preset))
    moved = 4 + 3 * 8 + 8 * averages + 2 * low  # the gradient read; parameter, moments, averages both ways
    return Case(
        name=f"{preset}-{name}",
        op="adamw_ema",
        fused=_fused,
        eager=_eager,
        inputs=functools.partial(_inputs, preset=preset, averages=averages, clip=clip, low=low),
        elements=count * moved // 4,
        flops=count * (clip + 3 + 4 + 7 + 3 * averages),  # gradient, moments, parameter, averages
        benchmark=clip and not low,  # in the suite, whose time is bounded
    )


@functools.cache
def optimizer_cases() -> tuple[Case, ...]:
    """The step with clipping and one average first, which the suite times too."""
    return tuple(
        case
        for preset in ("fashion-mnist", "ddpm-cifar10")
        for case in (
            _case("1-average", preset),
            _case("1-average-unclipped", preset, clip=False),
            _case("2-averages-bfloat16-copy", preset, averages=2, low=True),
        )
    )
