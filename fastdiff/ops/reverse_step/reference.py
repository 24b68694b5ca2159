"""reverse_step in plain PyTorch: the specification and the fallback. Any dtype, layout and device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops._like import as_like, is_transformed
from fastdiff.ops.philox import reference as philox
from fastdiff.ops.reverse_step.table import COLUMNS, Coefficients


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.reverse_step`."""

    x: Tensor
    model_output: Tensor
    table: Tensor
    index: Tensor
    uncond: Tensor | None = None
    h1: Tensor | None = None
    h2: Tensor | None = None
    noise: Tensor | None = None
    seeds: Tensor | None = None
    stream: int = 0
    clip: bool = False
    variance: str = "none"


def reverse_step(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """-> x_next and x0 like x, nonfinite [N] int32. Computed in float32; in float64 for float64 x."""
    x, model_output, table, index, uncond = (
        given.x,
        given.model_output,
        given.table,
        given.index,
        given.uncond,
    )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if index.device.type == "cpu" and not is_transformed():
        check_index(table, index)
    row = table.index_select(0, index.reshape(1))[0].to(dtype)
    k = Coefficients._make(row.unbind()[: len(COLUMNS)])
    channels = x.shape[1]
    state = x.to(dtype)
    out = model_output[:, :channels].to(dtype)
    if uncond is not None:
        base = uncond[:, :channels].to(dtype)
        out = base + k.guidance * (out - base)
    x0 = k.out_x * state + k.out_m * out
    if given.clip:
        x0 = x0.clamp(-1, 1)  # NaN stays NaN
    x_next = k.x * state + k.x0 * x0
    for coefficient, history in ((k.h1, given.h1), (k.h2, given.h2)):
        if history is not None:
            x_next = x_next + coefficient * history.to(dtype)
    noise = given.noise
    if given.seeds is not None:
        noise = philox.normal(given.seeds, x.shape[1:], step=index, stream=given.stream, dtype=dtype)
    if noise is not None:
        std = k.std
        if given.variance != "none":
            log_var = model_output[:, channels:].to(dtype)
            if given.variance == "learned_range":
                fraction = (log_var + 1) / 2
                log_var = fraction * k.log_max + (1 - fraction) * k.log_min
            std = k.noise_on * torch.exp(log_var / 2)
        x_next = x_next + std * noise.to(dtype)
    outputs = (model_output,) if uncond is None else (model_output, uncond)
    finite = torch.stack([torch.isfinite(o).flatten(1).all(1) for o in outputs]).all(0)
    return as_like(x_next, x), as_like(x0, x), (~finite).int()


def check_index(table: Tensor, index: Tensor) -> int:
    """The row's number, which must be one of the table's. For the CPU: elsewhere, looking at it waits."""
    row = int(index)
    if not 0 <= row < len(table):
        raise FastdiffError(f"reverse_step: index {row} is not a row of the table, which has {len(table)}")
    return row
