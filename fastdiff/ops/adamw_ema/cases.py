"""Updates of a few tensors at once: odd sizes, empty ones, several chunks, 16-bit gradients, all extras.

Cases are functions of their inputs, as the tests want them: they work on copies and return what came out, flattened.
``benchmarks/parts/optimizer_cases.py`` times the op in place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case
from fastdiff.ops.adamw_ema import AdamWHyper, adamw_ema, eager
from fastdiff.ops.adamw_ema.reference import Arguments


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    sizes: tuple[int, ...],
    rates: int = 0,
    step: int = 0,
    factor: float | None = None,
    low: torch.dtype | None = None,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(sizes))
    n = sum(sizes)
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(to: torch.dtype, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(n, generator=g)).to(device, to)

    kwargs: dict[str, Any] = {
        "params": normal(state),
        "grads": normal(dtype),
        "exp_avg": normal(state, 0.3),
        "exp_avg_sq": normal(state).square(),
        "emas": torch.stack([normal(state) for _ in range(rates)]) if rates else None,
        "sizes": sizes,
        "step": step,
        "low": low,
        "factor": None if factor is None else torch.tensor(factor, device=device),
    }
    return kwargs


def _step(
    update: Callable[..., None],
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    emas: Tensor | None,
    sizes: Sequence[int],
    step: int,
    low: torch.dtype | None,
    factor: Tensor | None,
) -> tuple[Tensor, ...]:
    """-> the new params, exp_avg, exp_avg_sq, and, if there are any, averages and low-precision copies."""

    def parts(t: Tensor) -> list[Tensor]:
        return [piece.clone() for piece in t.split(list(sizes))]

    p, m, v = parts(params), parts(exp_avg), parts(exp_avg_sq)
    averages = [] if emas is None else [parts(row) for row in emas]
    copies = [] if low is None else [torch.zeros_like(t, dtype=low) for t in p]
    steps = [torch.full((), float(step), device=params.device) for _ in p]
    hyper = AdamWHyper(lr=2e-2, weight_decay=0.1, decays=(0.9999, 0.3, 0.99, 0.5, 0.0)[: len(averages)])
    factor = None if factor is None else factor.float()
    update(p, parts(grads), m, v, steps, hyper, emas=averages, low=copies, grad_factor=factor)
    results = [torch.cat(p), torch.cat(m), torch.cat(v), torch.stack(steps)]
    results += [torch.cat([t for row in averages for t in row])] if averages else []
    return *results, *([torch.cat(copies).to(params.dtype)] if copies else [])


@torch.no_grad()
def eager_step(p, g, m, v, steps, hyper, *, emas, low, grad_factor) -> None:
    flat = [t for row in emas for t in row]
    numbers = (hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay, list(hyper.decays))
    eager.adamw_ema(Arguments(p, g, m, v, steps, flat, low, grad_factor, *numbers))


def _case(name: str, *, falls_back: bool = False, **options: Any) -> Case:
    return Case(
        name=name,
        op="adamw_ema",
        fused=functools.partial(_step, adamw_ema),
        eager=functools.partial(_step, eager_step),
        inputs=functools.partial(_inputs, **options),
        falls_back=falls_back,
    )


CASES = (
    _case("first-step", sizes=(64, 32)),
    _case("odd", sizes=(3, 1, 17, 130), step=6),
    _case("one-element", sizes=(1,), step=1),
    _case("empty-tensors", sizes=(0, 5, 0, 0, 33, 0), step=2, rates=1),
    _case("many-steps-odd", sizes=(77,), step=1_000_000, rates=1),
    _case("several-chunks", sizes=(20_000, 5, 33_333), step=3, rates=1),
    _case("factor-odd", sizes=(65, 34), step=2, factor=0.03),
    _case("low-bfloat16-odd", sizes=(65, 34), step=2, low=torch.bfloat16),
    _case("everything-odd", sizes=(129, 31, 16), step=10, rates=4, factor=3.0, low=torch.float16),
    _case("five-rates", sizes=(40,), step=1, rates=5, falls_back=True),
)
