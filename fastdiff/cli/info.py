"""``fastdiff info``: versions, devices, instruction sets, and which backend each op would use and why."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import fastdiff
from fastdiff.backend import Backend, candidates, unavailable
from fastdiff.ops import _native
from fastdiff.ops._op import OPS

PACKAGES = ("torch", "numpy", "safetensors", "pillow", "triton")


@dataclass(frozen=True)
class Info:
    """Print versions, devices, instruction sets, and which backend each op would use and why."""

    def run(self) -> int:
        print("\n".join(["versions", *_versions(), "", "devices", *_devices(), "", "ops", *_ops()]))
        return 0


def device_name(device: torch.device | str = "cpu") -> str:
    """The device in words, e.g. ``"cpu (AVX2, 2 threads)"`` or ``"cuda:0 (NVIDIA H100)"``."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({capability}, {threads} thread{'s' if threads > 1 else ''})"


def backend_name(device_type: str) -> str:
    """The backend that most ops use on a device, with its instruction set if it is the CPU's."""
    backend = next(b for b in candidates(device_type) if unavailable(b) is None)
    return f"cpu, {_native.instruction_set()} library" if backend is Backend.CPU else backend.value


def _versions() -> list[str]:
    lines = [f"  fastdiff     {fastdiff.__version__}", f"  python       {platform.python_version()}"]
    for package in PACKAGES:
        try:
            lines.append(f"  {package:<12} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"  {package:<12} not installed")
    return lines


def _devices() -> list[str]:
    lines = [f"  {device_name()}"]
    reason = _native.why_not()
    lines.append(f"  cpu kernels: {reason or f'{_native.instruction_set()} library'}")
    count = torch.cuda.device_count()
    lines += [f"  {device_name(f'cuda:{i}')}" for i in range(count)]
    if not count:
        lines.append("  no CUDA device visible")
    return lines


def _ops() -> list[str]:
    lines = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        for op in OPS.values():
            reasons = {backend: op.why_not(backend) for backend in candidates(device)}
            chosen = next(backend for backend, reason in reasons.items() if reason is None)
            lines.append(f"  {op.name:<26} on {device}: {chosen.value}")
            lines += [f"    not {b.value}: {reason}" for b, reason in reasons.items() if reason is not None]
    return lines
