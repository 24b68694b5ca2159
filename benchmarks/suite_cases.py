"""The suite's cases: those of the ops at the sizes of networks, and the optimizer's step, in place."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastdiff.models import build_model
from fastdiff.ops import AdamWHyper, adamw_ema
from fastdiff.ops._case import Case
from fastdiff.ops.adamw_ema import eager
from fastdiff.ops.cases import CASES as OP_CASES
from fastdiff.zoo import PRESETS

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_HYPER = AdamWHyper(1e-4, decays=(0.9999,))


def _parameters(_: torch.dtype, device: str, preset: str) -> dict[str, Any]:
    """Parameters, gradients, moments, step counts and one average, in float32 whatever the network computes in."""
    with torch.device("meta"):
        shapes = [p.shape for p in build_model(PRESETS[preset].model).parameters()]
    g = torch.Generator().manual_seed(0)

    def random() -> list[Tensor]:
        return [torch.randn(shape, generator=g).to(device) for shape in shapes]

    steps = [torch.zeros((), device=device) for _ in shapes]
    kwargs = {"params": random(), "grads": random(), "exp_avg": random(), "steps": steps, "emas": random()}
    return {
        **kwargs,
        "exp_avg_sq": [t.square() for t in random()],
        "factor": torch.tensor(0.5, device=device),
    }


def _update(params, grads, exp_avg, exp_avg_sq, steps, emas, factor) -> Tensor:
    adamw_ema(params, grads, exp_avg, exp_avg_sq, steps, _HYPER, emas=[emas], grad_factor=factor)
    return params[0]


@torch.no_grad()
def _eager(params, grads, exp_avg, exp_avg_sq, steps, emas, factor) -> Tensor:
    """Fused AdamW, then the average; the gradient is scaled first."""
    numbers = (_HYPER.lr, _HYPER.beta1, _HYPER.beta2, _HYPER.eps, _HYPER.weight_decay, [0.9999])
    eager.adamw_ema(params, grads, exp_avg, exp_avg_sq, steps, emas, [], factor, *numbers)
    return params[0]


def _optimizer_step(preset: str) -> Case:
    with torch.device("meta"):
        count = sum(p.numel() for p in build_model(PRESETS[preset].model).parameters())
    return Case(
        name=f"{preset}-1-average",
        op="adamw_ema",
        fused=_update,
        eager=_eager,
        inputs=functools.partial(_parameters, preset=preset),
        elements=9 * count,  # the gradient read; parameter, moments and average read and written
        flops=18 * count,  # gradient 1, m 3, v 4, p 7, average 3
        benchmark=True,
    )


CASES: list[Case] = [
    *(case for case in OP_CASES if case.benchmark),
    *(_optimizer_step(preset) for preset in ("fashion-mnist", "ddpm-cifar10")),
]


def dtypes(case: Case) -> list[str]:
    """Those that the case is timed in."""
    return ["f32"] if case.op == "adamw_ema" else list(DTYPES)
