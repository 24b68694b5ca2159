"""adamw_ema on the compiled CPU library."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel
from fastdiff.ops.adamw_ema import table


class Args(ctypes.Structure):
    """csrc/common/adamw.h: struct Args."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("table", "grad_factor")),
        *((name, ctypes.c_int64) for name in ("tensors", "columns", "chunk", "chunks", "rates")),
        *((name, ctypes.c_int64) for name in ("grad_dtype", "low_dtype", "threads")),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
        ("ema_weights", ctypes.c_float * table.MAX_RATES),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("adamw_ema", Args)


def arguments(addresses: Tensor, chunks: int, grad: Tensor, low: list[Tensor], hyper: tuple) -> Args:
    """All but threads. addresses: the table, on the kernel's device; hyper: the op's arguments from grad_factor on."""
    grad_factor, lr, beta1, beta2, eps, weight_decay, decays = hyper
    args = Args()
    args.table, args.tensors, args.columns = addresses.data_ptr(), *addresses.shape
    args.grad_factor = None if grad_factor is None else grad_factor.data_ptr()
    args.chunk, args.chunks, args.rates = table.CHUNK, chunks, len(decays)
    codes = _native.DTYPE_CODES
    args.grad_dtype, args.low_dtype = codes[grad.dtype], codes[low[0].dtype] if low else 0
    args.lr, args.beta1, args.beta2, args.eps, args.weight_decay = lr, beta1, beta2, eps, weight_decay
    args.ema_weights[: len(decays)] = [1 - decay for decay in decays]
    return args


def _supports(params, grads, exp_avg, exp_avg_sq, steps, emas, low, *hyper) -> str | None:
    return table.why_not(params, grads, exp_avg, exp_avg_sq, steps, emas, low, hyper[-1])


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
    torch._foreach_add_(steps, 1.0)
    grads = table.laid_out(params, grads)
    addresses, chunks = table.build(params, grads, exp_avg, exp_avg_sq, steps, emas, low)
    args = arguments(addresses, chunks, grads[0], low, hyper)
    args.threads = torch.get_num_threads()
    _function()(args)
    table.mark_written(params, exp_avg, exp_avg_sq, emas, low)


KERNELS = {"adamw_ema": Kernel(_run, _supports)}
