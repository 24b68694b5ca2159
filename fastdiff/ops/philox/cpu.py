"""philox_normal and philox_bits on the compiled CPU library."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel


class _Args(ctypes.Structure):
    """csrc/cpu/philox.cpp: struct Args."""

    _fields_ = [
        ("seeds", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("seed_stride", "samples", "count")),
        *((name, ctypes.c_uint32) for name in ("step", "stream")),
        *((name, ctypes.c_int64) for name in ("first_block", "dtype", "threads")),
    ]


@functools.cache
def _function(name: str) -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function(name, _Args)


def _run(
    name: str, seeds: Tensor, out: Tensor, count: int, step: int, stream: int, first_block: int, dtype: int
) -> Tensor:
    threads = torch.get_num_threads()
    stride, samples = seeds.stride(0), len(seeds)
    pointers = seeds.data_ptr(), out.data_ptr()
    _function(name)(_Args(*pointers, stride, samples, count, step, stream, first_block, dtype, threads))
    return out


def _normal(seeds: Tensor, shape: Sequence[int], step: int, stream: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty((len(seeds), *shape), dtype=dtype)
    code = _native.DTYPE_CODES[dtype]
    return _run("philox_normal", seeds, out, math.prod(shape), step, stream, 0, code)


def _bits(seeds: Tensor, count: int, step: int, stream: int, first_block: int) -> Tensor:
    out = torch.empty((len(seeds), count), dtype=torch.int64)
    return _run("philox_bits", seeds, out, count, step, stream, first_block, 0)


def _normal_supports(seeds, shape, step, stream, dtype) -> str | None:
    if dtype not in _native.DTYPE_CODES:
        return f"{dtype} is not among float32, bfloat16, float16"
    return None


def _bits_supports(seeds, count, step, stream, first_block) -> str | None:
    return None


KERNELS = {
    "philox_normal": Kernel(_normal, _normal_supports),
    "philox_bits": Kernel(_bits, _bits_supports),
}
