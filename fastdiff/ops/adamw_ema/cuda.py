"""adamw_ema in CUDA: one launch for all parameters; the table goes up only when an address in it has changed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._op import Kernel
from fastdiff.ops.adamw_ema import table
from fastdiff.ops.adamw_ema.cpu import Args, arguments


def _supports(params, grads, exp_avg, exp_avg_sq, steps, emas, low, *hyper) -> str | None:
    return _cuda.why_not_tensors(params[0]) or table.why_not(
        params, grads, exp_avg, exp_avg_sq, steps, emas, low, hyper[-1]
    )


def _run(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    steps: list[Tensor],
    emas: list[Tensor],
    low: list[Tensor],
    *hyper,
) -> None:
    device = params[0].device
    torch._foreach_add_(steps, 1.0)
    grads = table.laid_out(params, grads)
    addresses, chunks = table.build(params, grads, exp_avg, exp_avg_sq, steps, emas, low)
    addresses = table.uploaded(addresses, device)
    _cuda.function("adamw_ema", Args)(arguments(addresses, chunks, grads[0], low, hyper), device)
    table.mark_written(params, exp_avg, exp_avg_sq, emas, low)


KERNELS = {"adamw_ema": Kernel(_run, _supports)}
