"""Bits with and without a factor, in counts that end within a block, a vector and a chunk."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from fastdiff.ops._case import Case, by_name
from fastdiff.ops.bernoulli_step import bernoulli_step, eager
from fastdiff.ops.bernoulli_step.reference import Arguments

_SHARP_SEEDS = (-1, -(2**63), 2**63 - 1, 0x0123456789ABCDEF)


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, ...],
    factor: str | None = None,
    step: int = 3,
    stream: int = 0,
    strided: bool = False,
    channels_last: bool = False,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(shape))
    n, *rest = shape
    probability = torch.rand(n, *rest, generator=g)
    probability.flatten()[::7] = 1.0  # some bits are certain
    probability.flatten()[3::7] = 0.0
    probability = probability.to(device, dtype)
    if strided:
        probability = torch.stack((probability, probability), 1)[:, 0]
    if channels_last:
        probability = probability.to(memory_format=torch.channels_last)
    kwargs: dict[str, Any] = {
        "probability": probability,
        "seeds": torch.tensor((_SHARP_SEEDS * math.ceil(n / 4))[:n], dtype=torch.int64, device=device),
        "step": torch.tensor(step, device=device),
        "stream": stream,
    }
    if factor is not None:
        d = torch.rand(1 if factor == "shared" else n, *rest, generator=g)
        d = torch.where(d < 0.1, 0.0, torch.where(d > 0.9, 1.0, d))  # some bits are known
        kwargs["factor"] = d.to(device, torch.float32 if factor == "float32" else dtype)
    return kwargs


def _case(name: str, *, benchmark: bool = False, falls_back: bool = False, **options: Any) -> Case:
    elements = math.prod(options["shape"])
    return Case(
        name=name,
        op="bernoulli_step",
        fused=bernoulli_step,
        eager=by_name(eager.bernoulli_step, Arguments),
        baseline=by_name(eager.with_bernoulli, Arguments),
        inputs=functools.partial(_inputs, **options),
        elements=elements * (3 if options.get("factor") else 2),  # probability, bits, factor
        flops=elements
        * (8 if options.get("factor") else 1),  # c d, (1 - c) (1 - d), their quotient; a comparison
        benchmark=benchmark,
        falls_back=falls_back,
        keeps_layout=not options.get("strided"),
    )


CASES = (
    _case("heartbeat", shape=(7, 20)),
    _case("odd", shape=(3, 1, 7, 5), step=2**32 - 1, stream=2**32 - 1),
    _case("factor", shape=(5, 1, 13, 11), factor="own"),
    _case("factor-float32", shape=(5, 1, 13, 11), factor="float32"),
    _case("factor-shared", shape=(5, 3, 9), factor="shared"),
    _case("more-than-a-chunk", shape=(2, 4099), factor="own", stream=1),
    _case("one-bit-a-sample", shape=(9,)),
    _case("samples-apart", shape=(3, 21), strided=True, factor="own"),
    _case("channels_last", shape=(2, 3, 5, 7), channels_last=True, falls_back=True),
    _case("no-sample", shape=(0, 20)),
    _case("no-bit", shape=(3, 0), factor="own"),
    _case("4096x20", shape=(4096, 20), benchmark=True),
    _case("64x1x32x32", shape=(64, 1, 32, 32), factor="shared", benchmark=True),
)
