"""decision on the compiled CPU library."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from fastdiff.ops import _native
from fastdiff.ops._op import Kernel

_COUNT = 8  # parameters of a trial


class _Args(ctypes.Structure):
    """csrc/cpu/decision.cpp: struct Args."""

    _fields_ = [
        ("seeds", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p * _COUNT),
        ("strides", ctypes.c_int64 * _COUNT),
        *((name, ctypes.c_void_p) for name in ("rt", "choice", "position")),
        *((name, ctypes.c_int64) for name in ("seed_stride", "trials", "method", "max_steps", "threads")),
        *((name, ctypes.c_float) for name in ("dt", "reach", "max_time")),
    ]


@functools.cache
def _function() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    return _native.function("decision", _Args)


def _run(seeds: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    parameters, (method, dt, max_steps, max_time, reach) = rest[:_COUNT], rest[_COUNT:]
    n = len(seeds)
    out = torch.empty(n), torch.empty(n, dtype=torch.int8), torch.empty(n)
    arguments = _Args(
        seeds.data_ptr(),
        (ctypes.c_void_p * _COUNT)(*(p.data_ptr() for p in parameters)),
        (ctypes.c_int64 * _COUNT)(*(p.stride(0) for p in parameters)),
        *(o.data_ptr() for o in out),
        *(seeds.stride(0), n, method, max_steps, torch.get_num_threads()),
        *(dt, reach, max_time),
    )
    _function()(arguments)
    return out


def _supports(seeds: Tensor, v: Tensor, *rest) -> str | None:
    return None if v.dtype == torch.float32 else f"{v.dtype} is not float32"


KERNELS = {"decision": Kernel(_run, _supports)}
