"""bernoulli_step on the compiled CPU library: tensors become pointers and strides."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel
from fastdiff.ops.bernoulli_step.reference import check_step
from fastdiff.ops.bernoulli_step.rows import why_not_rows


class _Args(ctypes.Structure):
    """csrc/cpu/bernoulli_step.cpp: struct Args."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("probability", "factor", "seeds", "out")),
        *((name, ctypes.c_int64) for name in ("probability_stride", "factor_stride", "seed_stride")),
        *((name, ctypes.c_int64) for name in ("samples", "count", "dtype", "factor_dtype", "threads")),
        *((name, ctypes.c_uint32) for name in ("step", "stream")),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("bernoulli_step", _Args)


def _supports(probability, seeds, step, factor, stream) -> str | None:
    return why_not_rows(probability, factor)


def _run(probability: Tensor, seeds: Tensor, step: Tensor, factor: Tensor | None, stream: int) -> Tensor:
    args = _Args(step=check_step(step), stream=stream, threads=torch.get_num_threads())
    out = torch.empty_like(probability)
    if not out.numel():
        return out
    if out.dim() > 1 and not out.is_contiguous():  # of samples that are further apart than they need be
        out = torch.empty_like(probability, memory_format=torch.contiguous_format)
    args.samples, args.count = len(probability), math.prod(probability.shape[1:])
    args.probability, args.probability_stride = probability.data_ptr(), probability.stride(0)
    args.dtype = _native.DTYPE_CODES[probability.dtype]
    args.seeds, args.seed_stride = seeds.data_ptr(), seeds.stride(0)
    args.out = out.data_ptr()
    if factor is not None:
        args.factor = factor.data_ptr()
        args.factor_stride = 0 if len(factor) == 1 else factor.stride(0)
        args.factor_dtype = _native.DTYPE_CODES[factor.dtype]
    _function()(args)
    return out


KERNELS = {"bernoulli_step": Kernel(_run, _supports)}
