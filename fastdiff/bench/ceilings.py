"""Ceilings of a machine: the bandwidth of copies, and the speed of large matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.clock import Call, Turn, repeated, take_turns
from fastdiff.bench.sides import DTYPES

# Bytes: beyond every cache; and the size of the ops' cases, which a CPU's or a GPU's last cache holds.
COPIES = {"memory": 256 << 20, "cache": 4 << 20}
TF32 = "tf32"  # float32 on a GPU's tensor cores


def ceilings(
    device: str = "cpu",
    *,
    copies: Mapping[str, int] = COPIES,
    size: int | None = None,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    rounds: int = 9,
    turn: Callable[[Call], Turn] = repeated,
) -> dict[str, Any]:
    """Measure copies and matrix products in alternation; the fastest of each counts.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        copies: sizes of the copies in bytes, by name.
        size: size of the square matrices; None: 2048 on a CPU and 8192 on a GPU.
        dtypes: names of ``DTYPES``, or ``"tf32"``.
        rounds: number of measurements of each.
        turn: the clock.

    Returns:
        ``copy_gb_per_s`` by name, read and written bytes together; ``matmul_size``; ``matmul_gflops`` by dtype.
    """
    size = size or (2048 if device == "cpu" else 8192)
    calls: dict[str, Call] = {}
    for name, count in copies.items():
        source = torch.zeros(count, dtype=torch.uint8, device=device)
        calls[f"copy {name}"] = functools.partial(torch.empty_like(source).copy_, source)
    for name in dtypes:
        dtype = DTYPES["float32" if name == TF32 else name]
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        calls[f"matmul {name}"] = functools.partial(_product, a, b, name == TF32)
    turns = {name: turn(call) for name, call in calls.items()}
    least = {name: min(samples) for name, samples in take_turns(turns, rounds).items()}
    return {
        "copy_gb_per_s": {name: 2 * count / least[f"copy {name}"] / 1e9 for name, count in copies.items()},
        "matmul_size": size,
        "matmul_gflops": {name: 2 * size**3 / least[f"matmul {name}"] / 1e9 for name in dtypes},
    }


def _product(a: Tensor, b: Tensor, tf32: bool) -> Tensor:
    if a.device.type == "cpu":
        return a @ b
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return a @ b
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
