"""reverse_step as eager PyTorch users run it today: one operation after the other, tables looked up at each step.

The chain is that of guided-diffusion's ``p_sample``: the row's coefficients are gathered for every sample, cast, and
broadcast; then come the variance, x_0, the mean, the noise. What such code computes besides and never uses (the
posterior's own variance, exp of the log-variance) is left out, so that the baseline is not made slow on purpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.ops.philox import reference as philox
from fastdiff.ops.reverse_step.table import COLUMNS


def reverse_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    stream: int = 0,
    clip: bool = False,
    variance: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole of the op, with Philox noise and flags: in float64 the truth of the tests."""
    if seeds is not None:
        noise = philox.normal(seeds, x.shape[1:], step=index, stream=stream, dtype=x.dtype)
    x_next, x0 = _chain(x, model_output, table, index, uncond, h1, h2, noise, clip, variance)
    outputs = (model_output,) if uncond is None else (model_output, uncond)
    finite = torch.stack([torch.isfinite(o).flatten(1).all(1) for o in outputs]).all(0)
    return x_next, x0, (~finite).int()


def with_randn(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    index: Tensor,
    *,
    seeds: Tensor | None = None,
    stream: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The baseline, with the same arguments: no more than users do.

    Noise is ``torch.randn_like``, not that of the seeds; no flag is raised.
    """
    if seeds is not None:
        options["noise"] = torch.randn_like(x)
    x_next, x0 = _chain(x, model_output, table, index, **options)
    return x_next, x0, torch.zeros(x.shape[0], dtype=torch.int32, device=x.device)


def _chain(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    noise: Tensor | None = None,
    clip: bool = False,
    variance: str = "none",
) -> tuple[Tensor, Tensor]:
    t = index.expand(x.shape[0])
    dtype = torch.promote_types(x.dtype, torch.float32)

    def at(column: str) -> Tensor:
        """The column's entry for each sample's step, broadcast to x's shape."""
        entries = table[:, COLUMNS.index(column)][t].to(dtype)
        return entries.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)

    out, v = model_output[:, : x.shape[1]], model_output[:, x.shape[1] :]
    if uncond is not None:
        base = uncond[:, : x.shape[1]]
        out = base + at("guidance") * (out - base)
    if variance == "learned_range":
        fraction = (v + 1) / 2
        v = fraction * at("log_max") + (1 - fraction) * at("log_min")
    x0 = at("out_x") * x + at("out_m") * out
    if clip:
        x0 = x0.clamp(-1, 1)
    sample = at("x") * x + at("x0") * x0
    for column, history in (("h1", h1), ("h2", h2)):
        if history is not None:
            sample = sample + at(column) * history
    if noise is not None:
        std = at("std") if variance == "none" else at("noise_on") * torch.exp(0.5 * v)
        sample = sample + std * noise
    return sample.to(x.dtype), x0.to(x.dtype)
