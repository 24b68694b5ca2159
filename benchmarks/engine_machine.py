"""What a machine can do, what a network asks of it, and where an optimized one spends its time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from engine_sides import Network, Side, eagerly
from timing import interleave
from torch import Tensor, nn
from torch.autograd import DeviceType

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
SHARES: tuple[str, ...] = (
    "conv2d 3x3",
    "conv2d 1x1",
    "attention",
    "norm coefficients",
    "other convolutions",
    "rest",
)


def flags() -> list[str]:
    """Those of the processor's abilities that matter here."""
    info = Path("/proc/cpuinfo")
    line = re.search(r"^flags\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    has = line.group(1).split() if line else []
    return [flag for flag in FLAGS if flag in has]


def speed(rounds: int, size: int = 2048, megabytes: int = 256) -> dict[str, float]:
    """Practical peaks: GFLOP/s of large matrix products, and GB/s of a copy, read and written bytes together."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out, a16, b16 = torch.empty(size, size), a.bfloat16(), b.bfloat16()
    source = torch.zeros(megabytes * 2**18)
    target = torch.empty_like(source)
    times = interleave(
        {
            "float32": lambda: torch.mm(a, b, out=out),
            "bfloat16": lambda: torch.mm(a16, b16),
            "copy": lambda: target.copy_(source),
        },
        rounds=rounds,
    )
    gflop = 2 * size**3 / 1e9
    return {
        "matmul_size": size,
        "matmul_float32_gflops": gflop / times["float32"].median,
        "matmul_bfloat16_gflops": gflop / times["bfloat16"].median,
        "copy_megabytes": megabytes,
        "copy_gb_per_s": 2 * source.nbytes / 1e9 / times["copy"].median,
    }


@contextlib.contextmanager
def _hooked(model: nn.Module, hook: Any, kinds: tuple[type, ...]) -> Iterator[None]:
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def direct_gflop(network: Network) -> float:
    """Of one image: convolutions, computed directly, and linear layers, a multiplication and a sum counting as two.

    From the modules' shapes. Products of attention, norms and activations are not in it.
    """
    counted = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += 2 * output.numel() * layer.weight[0].numel()  # [Cout, Cin / groups, k, k]

    with _hooked(network.model, count, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        eagerly(network)()
    return counted / len(network.inputs[0]) / 1e9


def profile(side: Side, calls: int = 3) -> dict[str, float]:
    """Shares of the self time of all operators, by kind. Python between them is not in it."""
    side.run()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as found:
        for _ in range(calls):
            side.run()
    shares: dict[str, float] = dict.fromkeys(SHARES, 0.0)
    for event in found.key_averages(group_by_input_shape=True):
        if event.device_type == DeviceType.CPU:
            shares[_kind(event.key, event.input_shapes)] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: time / total for kind, time in shares.items()}


def _kind(op: str, shapes: list[list[int]]) -> str:
    if op == "fastdiff::conv2d":
        return "conv2d 3x3" if shapes[2][-1] == 3 else "conv2d 1x1"  # arguments: x, more, weight, ...
    if op in ("fastdiff::attention", "fastdiff::norm_coefficients"):
        return op.removeprefix("fastdiff::").replace("_", " ")
    return "other convolutions" if "conv" in op.lower() else "rest"
