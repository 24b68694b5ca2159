"""What ``fastdiff info`` prints: versions, devices, instruction sets, and the backend that each op would use."""

from __future__ import annotations

import platform

import torch

import fastdiff
from fastdiff.backend import Backend, candidates
from fastdiff.bench.machine import chosen_backend, device_name, version
from fastdiff.ops import _library, _measured
from fastdiff.ops._library import LIBRARIES, unavailable
from fastdiff.ops._op import OPS

PACKAGES = ("torch", "numpy", "safetensors", "pillow", "triton")


def report() -> str:
    """All of it, as text."""
    parts = (
        ["versions", *_versions()],
        ["devices", *_devices()],
        ["compiled parts", *_compiled_parts()],
        ["instruction sets of the cpu kernels", *_instruction_sets()],
        _ops(),
    )
    return "\n\n".join("\n".join(part) for part in parts)


def _versions() -> list[str]:
    lines = [f"  fastdiff     {fastdiff.__version__}", f"  python       {platform.python_version()}"]
    return lines + [f"  {package:<12} {version(package)}" for package in PACKAGES]


def _devices() -> list[str]:
    count = torch.cuda.device_count()
    lines = [f"  {device_name()}", *(f"  {device_name(f'cuda:{i}')}" for i in range(count))]
    return lines if count else [*lines, f"  no GPU: {unavailable(Backend.CUDA)}"]


def _compiled_parts() -> list[str]:
    """The library that registers the operators with PyTorch and the Python module, or why they are missing."""
    lines = [f"  operators    {LIBRARIES.door or 'compiled, ' + LIBRARIES.folder.name + '/ops.so'}"]
    if note := LIBRARIES.note():
        lines.append(f"  left out     {note}")
    try:
        from fastdiff import _C
    except ImportError as error:
        return [*lines, f"  module       fastdiff._C is missing ({error}); everything runs without it"]
    built = _C.build_info()
    return [*lines, f"  module       by {built['compiler']} for Python {built['python']}, {built['date']}"]


def _instruction_sets() -> list[str]:
    compiled = [path.stem.removeprefix("cpu_") for path in sorted(LIBRARIES.folder.glob("cpu_*.so"))]
    lines = [
        f"  processor    {torch.backends.cpu.get_cpu_capability()} (the best that PyTorch uses on it)",
        f"  compiled     {', '.join(compiled) or 'none'}",
        f"  used         {_library.instruction_set() or f'none: {unavailable(Backend.CPU)}'}",
    ]
    try:
        from fastdiff import _C
    except ImportError:
        return lines
    rate = _C.bfloat16_rate()
    told = f"{rate:.1f} times as many a second as in float32, measured" if rate else "no instruction for them"
    return [*lines, f"  all of it    {', '.join(_C.instruction_sets())}", f"  bfloat16     products: {told}"]


def _ops() -> list[str]:
    """Each op's backend, why not a faster one, and on a GPU whether a measurement decides."""
    lines = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        lines.append(f"ops on {device}")
        if device == _measured.DEVICE_TYPE:
            lines += [f"  {line}" for line in measurements(torch.cuda.current_device())]
        for op in OPS.values():
            chosen = chosen_backend(op, device)
            by = "" if device == "cpu" else "  by default order"
            lines.append(f"  {op.name:<26} {chosen.value}{by}")
            faster = candidates(device)[: candidates(device).index(chosen)]
            lines += [f"    not {b.value}: {op.why_not(b)}" for b in faster]
    return lines


def measurements(index: int) -> list[str]:
    """The dispatch table's entries for a GPU, which override the default order, or what applies without them."""
    found = _measured.entry(index)
    if found is None:
        lines = [f"no measurements of {torch.cuda.get_device_name(index)} (make gpu takes them)"]
        if torch.cuda.get_device_capability(index) >= _measured.LIBRARY_SINCE:
            lines.append("attention in bfloat16 and float16 is PyTorch's own there, see docs/gpu.md")
        return lines
    lines = [
        f"measured on {torch.cuda.get_device_name(index)}, {found['date']}"
        f" (torch {found['torch']}, triton {found['triton']}):"
    ]
    for op, classes in found["ops"].items():
        lines += [f"  {op}, {kind}: {backend}" for kind, backend in classes.items()]
    return lines
