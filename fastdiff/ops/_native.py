"""Finds and loads the best compiled CPU library for this processor, or says why there is none.

The libraries (``fastdiff/lib/cpu_<isa>.so``) are plain C functions: no torch, no Python. One build therefore
serves every torch and Python version, and a call is a ctypes call with one struct argument.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

LIBRARY_DIR = Path(__file__).resolve().parent.parent / "lib"
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/vec.h: enum DType

# torch's name of the processor's capability -> libraries that run there, best first.
_RUNS_ON = {"AVX512": ("avx512", "avx2", "default"), "AVX2": ("avx2", "default")}


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library and its instruction set, or None and the reason."""
    capability = torch.backends.cpu.get_cpu_capability()
    for isa in _RUNS_ON.get(capability, ("default",)):
        path = LIBRARY_DIR / f"cpu_{isa}.so"
        if path.exists():
            try:
                # torch was imported first: its OpenMP runtime is the one that this library binds to.
                return ctypes.CDLL(str(path)), isa
            except OSError as error:
                return None, f"{path.name} does not load: {error}"
    return None, "the CPU library is not built (python setup.py build_ext --inplace needs a C++ compiler)"


def library() -> ctypes.CDLL:
    """The loaded library. Call :func:`why_not` first."""
    loaded, reason = _load()
    if loaded is None:
        raise RuntimeError(reason)
    return loaded


def why_not() -> str | None:
    """Why no CPU library can be used, or None."""
    loaded, reason = _load()
    return reason if loaded is None else None


def instruction_set() -> str | None:
    """``"default"``, ``"avx2"`` or ``"avx512"``; None without a library."""
    loaded, isa = _load()
    return None if loaded is None else isa


def function(name: str, argument: type[ctypes.Structure]) -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    """The C function ``void fastdiff_<name>(const Args*)``, after checking that both sides agree on Args."""
    size = getattr(library(), f"fastdiff_{name}_args_size")
    size.restype = ctypes.c_size_t
    if size() != ctypes.sizeof(argument):
        raise RuntimeError(f"{name}: the compiled library is stale; run python setup.py build_ext --inplace")
    run = getattr(library(), f"fastdiff_{name}")
    run.argtypes = [ctypes.POINTER(argument)]
    run.restype = None
    return run


def why_not_channels_last(x: Tensor) -> str | None:
    """None if each image of x [N, C, H, W] lies in memory as [H, W, C] without gaps; images may be apart."""
    _, c, h, w = x.shape
    # The channels' stride counts even if there is but one: the result's layout goes by it.
    wanted = (1, w * c, c)
    for size, stride, dense in zip((2, h, w), x.stride()[1:], wanted, strict=True):
        if size != 1 and stride != dense:
            return f"an input with shape {list(x.shape)} and strides {list(x.stride())} is not channels_last"
    return None
