"""Finds and loads the compiled CUDA library, or says why there is none; launches on PyTorch's current stream.

``fastdiff/lib/cuda.so`` is plain C functions, like the CPU libraries: no torch, no Python. One build therefore
serves every torch and Python version. ``FASTDIFF_CUDA_LIBRARY`` names another file, which may also be the same
sources compiled for the CPU (``csrc/emulation``): a GPU's threads one after the other, on the CPU's tensors,
so that tests see the kernels where there is no GPU.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops._native import DTYPE_CODES, LIBRARY_DIR

DTYPES = tuple(DTYPE_CODES)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    path = Path(os.environ.get("FASTDIFF_CUDA_LIBRARY", LIBRARY_DIR / "cuda.so"))
    if not path.exists():
        return None, f"{path.name} is not built (python setup.py build_ext --inplace, where nvcc is)"
    try:
        return ctypes.CDLL(str(path)), ""
    except OSError as error:
        return None, f"{path.name} does not load: {error}"


def is_emulated() -> bool:
    """Whether the library is the one that runs on the CPU's tensors."""
    library, _ = _load()
    return library is not None and hasattr(library, "fastdiff_cuda_is_emulated")


def why_not() -> str | None:
    """Why no CUDA kernel can run on this machine, or None."""
    if not is_emulated() and not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    library, reason = _load()
    return reason if library is None else None


def device_type() -> str:
    """Where the tensors of a call are: ``"cuda"``, or ``"cpu"`` for the emulated library."""
    return "cpu" if is_emulated() else "cuda"


def why_not_tensors(x: Tensor, **others: Tensor | None) -> str | None:
    """Why no CUDA kernel takes these tensors, or None. All of them are on x's device already."""
    if x.device.type != device_type():
        return f"the CUDA kernels run on {device_type()} tensors, and x is on {x.device}"
    for name, t in {"x": x, **others}.items():
        if t is not None and t.dtype not in DTYPE_CODES:
            return f"{name} is {t.dtype}, not float32, bfloat16 or float16"
    return None


def _checked_library(name: str, argument: type[ctypes.Structure]) -> ctypes.CDLL:
    """The library, if there is one and both sides agree on an op's arguments."""
    library, reason = _load()
    if library is None:
        raise RuntimeError(reason)
    size = getattr(library, f"fastdiff_{name}_args_size")
    size.restype = ctypes.c_size_t
    if size() != ctypes.sizeof(argument):
        raise RuntimeError(
            f"{name}: the compiled CUDA library is stale; run python setup.py build_ext --inplace"
        )
    return library


@functools.cache
def workspace_function(
    name: str, argument: type[ctypes.Structure]
) -> Callable[[ctypes.Structure, torch.device], int]:
    """``size_t fastdiff_<name>_workspace(const Args*)``: bytes of scratch memory that a call needs on a device."""
    size = getattr(_checked_library(name, argument), f"fastdiff_{name}_workspace")
    size.argtypes, size.restype = [ctypes.POINTER(argument)], ctypes.c_size_t
    if is_emulated():
        return lambda args, device: size(args)

    def on_device(args: ctypes.Structure, device: torch.device) -> int:
        with torch.cuda.device(device):
            return size(args)

    return on_device


@functools.cache
def function(name: str, argument: type[ctypes.Structure]) -> Callable[[ctypes.Structure, torch.device], None]:
    """A launcher of ``int fastdiff_<name>(const Args*, cudaStream_t)``, after checking that both sides agree on Args.

    It launches on the device's current stream, waits for nothing, and raises FastdiffError where CUDA
    refuses the launch.
    """
    library = _checked_library(name, argument)
    launch = getattr(library, f"fastdiff_{name}")
    launch.argtypes = [ctypes.POINTER(argument), ctypes.c_void_p]
    launch.restype = ctypes.c_int
    describe = library.fastdiff_cuda_error_string
    describe.argtypes, describe.restype = [ctypes.c_int], ctypes.c_char_p

    def checked(args: ctypes.Structure, stream: int) -> None:
        if code := launch(args, stream):
            raise FastdiffError(f"{name}: CUDA refused the launch: {describe(code).decode()}")

    if is_emulated():
        return lambda args, device: checked(args, 0)

    def on_device(args: ctypes.Structure, device: torch.device) -> None:
        if device.index == torch.cuda.current_device():
            checked(args, torch._C._cuda_getCurrentRawStream(device.index))
        else:
            with torch.cuda.device(device):  # the device guard: kernels go where their tensors are
                checked(args, torch._C._cuda_getCurrentRawStream(device.index))

    return on_device
