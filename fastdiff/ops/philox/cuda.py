"""philox_normal and philox_bits in CUDA."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._native import DTYPE_CODES
from fastdiff.ops._op import Kernel


class _Args(ctypes.Structure):
    """csrc/cuda/philox.cuh: struct Args."""

    _fields_ = [
        ("seeds", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("seed_stride", "samples", "count")),
        *((name, ctypes.c_uint32) for name in ("step", "stream")),
        *((name, ctypes.c_int64) for name in ("first_block", "dtype")),
    ]


def _normal(seeds: Tensor, shape: Sequence[int], step: int, stream: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty((len(seeds), *shape), dtype=dtype, device=seeds.device)
    sizes = seeds.stride(0), len(seeds), math.prod(shape)
    args = _Args(seeds.data_ptr(), out.data_ptr(), *sizes, step, stream, 0, DTYPE_CODES[dtype])
    _cuda.function("philox_normal", _Args)(args, seeds.device)
    return out


def _bits(seeds: Tensor, count: int, step: int, stream: int, first_block: int) -> Tensor:
    out = torch.empty((len(seeds), count), dtype=torch.int64, device=seeds.device)
    args = _Args(
        seeds.data_ptr(), out.data_ptr(), seeds.stride(0), len(seeds), count, step, stream, first_block, 0
    )
    _cuda.function("philox_bits", _Args)(args, seeds.device)
    return out


def _why_not_device(seeds: Tensor) -> str | None:
    if seeds.device.type != _cuda.device_type():
        return f"the CUDA kernels run on {_cuda.device_type()} tensors, and the seeds are on {seeds.device}"
    return None


def _normal_supports(seeds, shape, step, stream, dtype) -> str | None:
    if dtype not in DTYPE_CODES:
        return f"{dtype} is not among float32, bfloat16, float16"
    return _why_not_device(seeds)


def _bits_supports(seeds, count, step, stream, first_block) -> str | None:
    return _why_not_device(seeds)


KERNELS = {
    "philox_normal": Kernel(_normal, _normal_supports),
    "philox_bits": Kernel(_bits, _bits_supports),
}
