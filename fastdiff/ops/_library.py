"""The compiled libraries: finding and opening them once, or the reason why they are missing.

``fastdiff/lib/ops.so`` gives PyTorch's operators their CPU and CUDA kernels (``csrc/torch``; it knows LibTorch's stable
ABI and no Python). It opens the kernels themselves, plain C functions that know neither: ``cpu_<isa>.so``, the best
for this processor, ``cuda.so``, and for tests the emulation of CUDA that ``FASTDIFF_EMULATION_LIBRARY`` names.
``FASTDIFF_LIBRARIES`` names another folder than ``fastdiff/lib``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from fastdiff import backend as _backend
from fastdiff.backend import Backend

LIBRARY_DIR = Path(__file__).resolve().parent.parent / "lib"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that kernels read and write: csrc/common/dtype.h
OLDEST_TORCH = (2, 11)  # csrc/torch is compiled for it: setup.py's TORCH_TARGET_VERSION
_BUILD = "python setup.py build_ext --inplace"
_NEEDS = f"{_BUILD} needs a C++ compiler"

# Name of the processor's capability -> libraries that run there, best first.
_RUNS_ON = {
    "AMX": ("amx", "avx512", "avx2", "default"),
    "AVX512": ("avx512", "avx2", "default"),
    "AVX2": ("avx2", "default"),
}


class Libraries:
    """The libraries that are open, and the reasons why others could not be opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reasons: dict[Backend, str] = {}
        self.instruction_set: str | None = None
        self.door = self._open_door()
        self._open_cpu()
        self.open(Backend.CUDA, folder / "cuda.so", f"{_BUILD}, where nvcc is")
        if path := os.environ.get("FASTDIFF_EMULATION_LIBRARY"):
            self.open(Backend.EMULATION, Path(path), "tests/toolchain.py")
        else:
            self.reasons[Backend.EMULATION] = "FASTDIFF_EMULATION_LIBRARY names no library"

    def _open_door(self) -> str | None:
        """None, or why PyTorch's operators have no compiled kernels."""
        path = self.folder / "ops.so"
        if _torch_version() < OLDEST_TORCH:
            oldest = ".".join(map(str, OLDEST_TORCH))
            return f"the compiled operators need torch {oldest} or later, and this is {torch.__version__}"
        if not path.exists():
            return f"the compiled operators are not built ({self.note() or _NEEDS})"
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            return f"{path.name} does not load: {error.__cause__ or error}"
        return None

    def _open_cpu(self) -> None:
        for isa in _RUNS_ON.get(_capability(), ("default",)):
            path = self.folder / f"cpu_{isa}.so"
            if path.exists():
                self.open(Backend.CPU, path, "")
                self.instruction_set = None if Backend.CPU in self.reasons else isa
                return
        self.reasons[Backend.CPU] = self.door or f"the CPU library is not built ({self.note() or _NEEDS})"

    def note(self) -> str:
        """What setup.py left out, and why; empty if nothing."""
        path = self.folder / "not_compiled.txt"
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def open(self, backend: Backend, path: Path, how_to_build: str) -> None:
        """Open one backend's kernels; if that fails, ``reasons`` gets the reason."""
        reason = self.door
        if reason is None and not path.exists():
            reason = f"{path.name} is not built ({how_to_build})"
        if reason is None and (error := torch.ops.fastdiff._open(backend.code, str(path))):
            reason = f"{path.name} does not load: {error}"
        if reason is None:
            self.reasons.pop(backend, None)
        else:
            self.reasons[backend] = reason


def _capability() -> str:
    """torch's word for the processor, which obeys ATEN_CPU_CAPABILITY; "AMX" unless ONEDNN_MAX_CPU_ISA forbids it."""
    capability = torch.backends.cpu.get_cpu_capability()
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if capability != "AVX512" or not (most in ("ALL", "DEFAULT") or "AMX" in most):
        return capability
    try:  # PyTorch's private names; Linux saves the tiles of those processes only that have asked for it
        return "AMX" if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx() else capability
    except AttributeError:
        return capability


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


LIBRARIES = Libraries(Path(os.environ.get("FASTDIFF_LIBRARIES", LIBRARY_DIR)))
if LIBRARIES.door is None:
    _backend.tell_library = torch.ops.fastdiff._use_backend.default


def instruction_set() -> str | None:
    """``"default"``, ``"avx2"``, ``"avx512"`` or ``"amx"``; None without a library."""
    return LIBRARIES.instruction_set


def multiplies_tiles(dtype: torch.dtype) -> bool:
    """True if products of this dtype are AMX's here, in PyTorch's operators as in the CPU kernels."""
    return dtype == torch.bfloat16 and instruction_set() == "amx"


def unavailable(backend: Backend) -> str | None:
    """Why ``backend`` cannot run on this machine at all, or None if it can."""
    if backend in (Backend.CPU, Backend.EMULATION):
        return LIBRARIES.reasons.get(backend)
    if backend is Backend.CUDA:
        if not torch.cuda.is_available():
            return "no CUDA device is visible to torch"
        return LIBRARIES.reasons.get(backend)
    if backend is Backend.TRITON:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed (pip install 'fastdiff[gpu]')"
        from fastdiff.ops import _triton

        if not _triton.INTERPRETED and not torch.cuda.is_available():
            return "no CUDA device is visible to torch"
    return None
