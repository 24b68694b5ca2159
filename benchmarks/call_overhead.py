"""What does a call of an op cost beside its arithmetic? Small tensors, one thread, turn by turn with eager PyTorch.

    python benchmarks/call_overhead.py [--rounds N] [--out FILE.json]

Prints Markdown: microseconds a call (medians of the process's own time, which other processes do not lengthen) and
their ratio. The optimizer's row is a step over ADM-64's 541 tensors, here of one element each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from fastdiff.bench import machine, results
from fastdiff.bench.clock import Call, repeated, timings
from fastdiff.bench.report import table
from fastdiff.ops import AdamWHyper, adamw_ema, attention, conv2d, group_norm_silu, reverse_step

CALLS = 400
TENSORS = 541  # of ADM-64


@dataclass(frozen=True)
class Row:
    """Median microseconds of a call."""

    name: str
    eager: float
    fastdiff: float

    @property
    def ratio(self) -> float:
        return self.fastdiff / self.eager


def norm(gradient: bool) -> dict[str, Call]:
    x, bias = torch.randn(1, 8, 4, 4), torch.zeros(8)
    weight = torch.ones(8, requires_grad=gradient)
    return {
        "eager": lambda: F.silu(F.group_norm(x, 4, weight, bias)),
        "fastdiff": lambda: group_norm_silu(x, 4, weight, bias),
    }


def scaled_dot_product() -> dict[str, Call]:
    q, k, v = (torch.randn(1, 2, 8, 8) for _ in range(3))
    return {"eager": lambda: F.scaled_dot_product_attention(q, k, v), "fastdiff": lambda: attention(q, k, v)}


def convolution() -> dict[str, Call]:
    x = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    return {"eager": lambda: F.conv2d(x, weight, padding=1), "fastdiff": lambda: conv2d(x, weight)}


def step() -> dict[str, Call]:
    """One step of DDIM: predicted x_0, clamped, and the next state."""
    x, out = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    rows = torch.tensor([[1.02, -0.2, 0.97, 0.02, 0, 0, 0, 0, 0, 0, 0, 0]])
    index = torch.tensor(0)

    def eager() -> Tensor:
        x0 = (1.02 * x - 0.2 * out).clamp(-1, 1)
        return 0.97 * x + 0.02 * x0

    return {"eager": eager, "fastdiff": lambda: reverse_step(x, out, rows, index, clip=True)}


def optimizer() -> dict[str, Call]:
    def tensors(count: int = TENSORS) -> list[Tensor]:
        return [torch.rand(1) for _ in range(count)]

    params, grads = tensors(), tensors()
    own = torch.optim.AdamW(params, lr=1e-4, foreach=True)
    averages = tensors()
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    mine = tensors(), tensors(), tensors(), tensors(), [torch.zeros(()) for _ in range(TENSORS)]
    emas, hyper = [tensors()], AdamWHyper(1e-4, decays=(0.9999,))

    @torch.no_grad()
    def eager() -> None:
        own.step()
        torch._foreach_lerp_(averages, params, 1e-4)

    return {"eager": eager, "fastdiff": lambda: adamw_ema(*mine, hyper, emas=emas)}


CASES: dict[str, tuple[Callable[[], dict[str, Call]], bool, int]] = {
    "group_norm_silu, no gradient": (lambda: norm(False), False, CALLS),
    "group_norm_silu, forward with a gradient": (lambda: norm(True), True, CALLS),
    "attention, no gradient": (scaled_dot_product, False, CALLS),
    "conv2d, no gradient": (convolution, False, CALLS),
    "reverse_step": (step, False, CALLS),
    "adamw_ema, a step over 541 tensors": (optimizer, False, 4),
}


def measure(name: str, rounds: int) -> Row:
    make, gradient, calls = CASES[name]
    with torch.set_grad_enabled(gradient):
        turns = {side: repeated(call, calls=calls, timer=time.thread_time) for side, call in make().items()}
        times = timings(turns, rounds)
    return Row(name, *(1e6 * times[side].median for side in ("eager", "fastdiff")))


def main(rounds: int = 61, out: Path | None = None) -> None:
    """Time every case on one thread.

    Args:
        rounds: Turns of each side.
        out: Also write the rows as JSON.
    """
    torch.set_num_threads(1)
    about = machine.describe()
    rows = [measure(name, rounds) for name in CASES]
    print(machine.in_words(about) + "\n")
    cells = [[r.name, f"{r.eager:.1f}", f"{r.fastdiff:.1f}", f"{r.ratio:.2f}"] for r in rows]
    print(table(["call", "eager, us", "fastdiff, us", "fastdiff / eager"], cells))
    if out is not None:
        results.write(out, about, rows=[asdict(r) for r in rows])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
