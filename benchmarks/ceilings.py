"""What this machine can do at best: a copy's bandwidth and large matrix products, measured in the suite's own run."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from suite_cases import DTYPES

# Beyond every cache; and the size of the ops' cases, which a CPU's or a GPU's last cache holds.
COPIES = {"memory": 256 << 20, "cache": 4 << 20}


def ceilings(device: str) -> dict[str, dict[str, float]]:
    """{"copy_gb_per_s": {"memory", "cache"}, "matmul_gflops": {dtype}}: a ceiling is the best of its turns."""
    copies = {}
    for name, size in COPIES.items():
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)
        seconds = _best(lambda target=target, source=source: target.copy_(source))
        copies[name] = 2 * size / seconds / 1e9
    n = 2048 if device == "cpu" else 8192
    products = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        products[name] = 2 * n**3 / _best(lambda a=a, b=b: a @ b) / 1e9
    return {"copy_gb_per_s": copies, "matmul_gflops": products}


def _best(function: Callable[[], object], seconds: float = 0.6) -> float:
    """The fastest of the calls that fit into ``seconds``, and of three at least."""
    turns: list[float] = []
    function()
    while len(turns) < 3 or sum(turns) < seconds:
        _synchronize()
        start = time.perf_counter()
        function()
        _synchronize()
        turns.append(time.perf_counter() - start)
    return min(turns)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
