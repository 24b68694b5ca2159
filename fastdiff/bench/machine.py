"""Description of the machine of a measurement, for every program and results file."""

from __future__ import annotations

import datetime
import functools
import platform
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch

import fastdiff
import fastdiff.ops  # fills OPS
from fastdiff.backend import Backend, candidates
from fastdiff.backend import device_name as device_name
from fastdiff.ops import _library
from fastdiff.ops._op import OPS, FusedOp

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_BEST = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # the first that a processor has is in its slug


def default_device() -> str:
    """``"cuda"`` where there is a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_backend(op: FusedOp, device_type: str) -> Backend:
    """The first of the device's backends that can run the op."""
    return next(backend for backend in candidates(device_type) if op.why_not(backend) is None)


def backends_in_words(device_type: str) -> str:
    """Where the ops' forward passes run on a device, e.g. ``"cpu kernels, instruction set avx2"``."""
    ops: dict[Backend, list[str]] = {}
    for op in OPS.values():
        if not op.name.endswith("_backward"):
            ops.setdefault(chosen_backend(op, device_type), []).append(op.name)
    names = {backend: f"{backend.value} kernels" for backend in ops}
    names |= {Backend.CPU: f"cpu kernels, instruction set {_library.instruction_set()}"}
    names |= {Backend.REFERENCE: "reference (plain PyTorch)"}
    if len(ops) == 1:
        return names[next(iter(ops))]
    fastest_first = sorted(ops, key=candidates(device_type).index)
    return "; ".join(f"{names[backend]}: {', '.join(ops[backend])}" for backend in fastest_first)


def processor(device: str = "cpu") -> str:
    """The model name of the processor or, for ``"cuda"``, of the GPU."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*: (.*)", _cpuinfo())
    return names[0] if names else platform.processor() or platform.machine()


def flags() -> list[str]:
    """Those instruction sets of the processor that matter here."""
    line = re.search(r"^flags\s*: (.*)$", _cpuinfo(), re.MULTILINE)
    has = line.group(1).split() if line else []
    return [flag for flag in FLAGS if flag in has]


@functools.cache
def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def version(package: str) -> str:
    """Version of an installed package, or "not installed"."""
    try:
        return package_version(package)
    except PackageNotFoundError:
        return "not installed"


def describe(device: str = "cpu", *packages: str) -> dict[str, Any]:
    """The conditions of a measurement: device, kernels, versions, date.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        packages: other packages whose versions matter.
    """
    about: dict[str, Any] = {"processor": processor(device), "device": device_name(device)}
    if device == "cpu":
        about["flags"] = " ".join(flags())
    else:
        about["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        about |= {"cuda": str(torch.version.cuda), "triton": version("triton")}
    about |= {"backend": backends_in_words(device), "threads": torch.get_num_threads()}
    about |= {"torch": torch.__version__, **{name: version(name) for name in packages}}
    about |= {"fastdiff": fastdiff.__version__, "python": platform.python_version()}
    return about | {"date": datetime.date.today().isoformat()}


def in_words(about: dict[str, Any]) -> str:
    """A description on one line."""
    return ", ".join(f"{key} {value}" for key, value in about.items() if value not in ("", False))


def slug(device: str = "cpu") -> str:
    """The machine in the name of a file, in letters, digits and hyphens.

    It contains a processor's best instruction set, because some processors hide their names.
    """
    best = () if device != "cpu" else [flag for flag in _BEST if flag in flags()][:1] or [platform.machine()]
    return re.sub(r"[^a-z0-9]+", "-", " ".join((processor(device), *best)).lower()).strip("-")
