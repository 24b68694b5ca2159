"""bernoulli_step in CUDA."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._native import DTYPE_CODES
from fastdiff.ops._op import Kernel
from fastdiff.ops.bernoulli_step.rows import why_not_rows


class _Args(ctypes.Structure):
    """csrc/cuda/bernoulli_step.cuh: struct Args."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("probability", "factor", "seeds", "step", "out")),
        *((name, ctypes.c_int64) for name in ("probability_stride", "factor_stride", "seed_stride")),
        *((name, ctypes.c_int64) for name in ("samples", "count", "dtype", "factor_dtype")),
        ("stream", ctypes.c_uint32),
    ]


def _supports(probability, seeds, step, factor, stream) -> str | None:
    return _cuda.why_not_tensors(probability, factor=factor) or why_not_rows(probability, factor)


def _run(probability: Tensor, seeds: Tensor, step: Tensor, factor: Tensor | None, stream: int) -> Tensor:
    out = torch.empty_like(probability, memory_format=torch.contiguous_format)
    if not out.numel():
        return out
    args = _Args(step=step.data_ptr(), stream=stream, out=out.data_ptr())
    args.samples, args.count = len(probability), math.prod(probability.shape[1:])
    args.probability, args.probability_stride = probability.data_ptr(), probability.stride(0)
    args.dtype = DTYPE_CODES[probability.dtype]
    args.seeds, args.seed_stride = seeds.data_ptr(), seeds.stride(0)
    if factor is not None:
        args.factor = factor.data_ptr()
        args.factor_stride = 0 if len(factor) == 1 else factor.stride(0)
        args.factor_dtype = DTYPE_CODES[factor.dtype]
    _cuda.function("bernoulli_step", _Args)(args, probability.device)
    return out


KERNELS = {"bernoulli_step": Kernel(_run, _supports)}
