"""The op decision in CUDA."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdiff.ops import _cuda
from fastdiff.ops._op import Kernel

_COUNT = 8  # parameters of a trial


class _Args(ctypes.Structure):
    """csrc/cuda/decision.cuh: struct Args."""

    _fields_ = [
        ("seeds", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p * _COUNT),
        ("strides", ctypes.c_int64 * _COUNT),
        *((name, ctypes.c_void_p) for name in ("rt", "choice", "position")),
        *((name, ctypes.c_int64) for name in ("seed_stride", "trials", "method", "max_steps")),
        *((name, ctypes.c_float) for name in ("dt", "reach", "max_time")),
    ]


def _run(seeds: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    parameters, (method, dt, max_steps, max_time, reach) = rest[:_COUNT], rest[_COUNT:]
    n = len(seeds)
    rt, position = (torch.empty(n, device=seeds.device) for _ in range(2))
    choice = torch.empty(n, dtype=torch.int8, device=seeds.device)
    arguments = _Args(
        seeds.data_ptr(),
        (ctypes.c_void_p * _COUNT)(*(p.data_ptr() for p in parameters)),
        (ctypes.c_int64 * _COUNT)(*(p.stride(0) for p in parameters)),
        *(t.data_ptr() for t in (rt, choice, position)),
        *(seeds.stride(0), n, method, max_steps),
        *(dt, reach, max_time),
    )
    _cuda.function("decision", _Args)(arguments, seeds.device)
    return rt, choice, position


def _supports(seeds: Tensor, v: Tensor, *rest) -> str | None:
    return _cuda.why_not_tensors(v) if v.dtype == torch.float32 else f"{v.dtype} is not float32"


KERNELS = {"decision": Kernel(_run, _supports)}
