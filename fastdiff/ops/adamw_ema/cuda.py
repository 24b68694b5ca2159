"""adamw_ema in CUDA: one launch for all parameters; the table goes up only when an address in it has changed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._op import Kernel
from fastdiff.ops.adamw_ema import table
from fastdiff.ops.adamw_ema.cpu import Args, arguments

# (device, stream) -> the last table there and, so that an upload under way keeps its source, in pinned memory.
_uploaded: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}


@functools.cache
def _launch() -> Callable[[ctypes.Structure, torch.device], None]:
    return _cuda.function("adamw_ema", Args)


def _upload(addresses: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":  # the emulation
        return addresses
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _uploaded or not torch.equal(_uploaded[key][0], addresses):
        pinned = addresses.pin_memory()
        _uploaded[key] = (pinned, pinned.to(device, non_blocking=True))
    return _uploaded[key][1]


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
    addresses = _upload(addresses, device)
    _launch()(arguments(addresses, chunks, grads[0], low, hyper), device)
    table.mark_written(params, exp_avg, exp_avg_sq, emas, low)


KERNELS = {"adamw_ema": Kernel(_run, _supports)}
