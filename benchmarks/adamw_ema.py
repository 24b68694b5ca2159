"""The optimizer step of a whole model: PyTorch's AdamW and moving averages against adamw_ema, turn by turn in one run.

    python benchmarks/adamw_ema.py [--presets NAME ...] [--rounds N]

Prints Markdown: medians, their ratio, and bytes per parameter with the bandwidth they make.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import tyro
from ratios import processor
from timing import interleave
from torch import Tensor

from fastdiff.bench.machine import device_name
from fastdiff.bench.report import table
from fastdiff.models import build_model
from fastdiff.ops import AdamWHyper, adamw_ema
from fastdiff.ops.adamw_ema import eager
from fastdiff.zoo import PRESETS


@dataclass(frozen=True)
class Setting:
    """What is asked of a step. Bytes of one parameter: each array is read, or read and written, once a pass."""

    name: str
    rates: int = 1
    clip: bool = False
    low: bool = False
    eager_bytes: int = field(init=False)
    fused_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        adamw = 4 + 3 * 8  # the gradient; parameter and moments both ways
        averages, low = 8 * self.rates, 2 * self.low
        object.__setattr__(self, "fused_bytes", adamw + averages + low)
        passes = 8 * self.clip + 4 * self.rates + 4 * self.low  # scaled gradients; the parameter, read again
        object.__setattr__(self, "eager_bytes", adamw + averages + low + passes)


SETTINGS = (
    Setting("AdamW, 1 average"),
    Setting("clipped AdamW, 1 average", clip=True),
    Setting("clipped AdamW, 2 averages, bfloat16 copy", rates=2, clip=True, low=True),
)


def steps(preset: str, setting: Setting, device: str) -> dict[str, Callable[[], None]]:
    """One step of each side on tensors of its own; clipping's norm, which both need, is left out."""
    with torch.device("meta"):
        shapes = [p.shape for p in build_model(PRESETS[preset].model).parameters()]
    g = torch.Generator().manual_seed(0)

    def random() -> list[Tensor]:
        return [torch.randn(shape, generator=g).to(device) for shape in shapes]

    def side() -> tuple[list, ...]:
        params, grads, m = random(), random(), random()
        v = [t.square() for t in random()]
        emas = [[p.clone() for p in params] for _ in range(setting.rates)]
        low = [p.bfloat16() for p in params] if setting.low else []
        return params, grads, m, v, [torch.zeros((), device=device) for _ in params], emas, low

    factor = torch.tensor(0.999999, device=device) if setting.clip else None
    hyper = AdamWHyper(1e-4, decays=(0.9999, 0.999)[: setting.rates])
    *lists, emas, low = side()
    return {
        "eager": functools.partial(_eager, *side(), factor, hyper),
        "fastdiff": functools.partial(adamw_ema, *lists, hyper, emas=emas, low=low, grad_factor=factor),
    }


@torch.no_grad()
def _eager(params, grads, m, v, count, emas, low, factor: Tensor | None, hyper: AdamWHyper) -> None:
    """Fused AdamW; the gradient is scaled in place, as clip_grad_norm_ does it."""
    if factor is not None:
        torch._foreach_mul_(grads, factor)
    flat = [t for row in emas for t in row]
    numbers = (hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay, list(hyper.decays))
    eager.adamw_ema(params, grads, m, v, count, flat, low, None, *numbers)


def main(presets: tuple[str, ...] = ("fashion-mnist", "ddpm-cifar10"), rounds: int = 15) -> None:
    """Measure and print.

    Args:
        presets: whose parameters to update.
        rounds: turns each side takes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device_name(device)}, {processor()}, torch {torch.__version__}, {rounds} turns\n")
    rows = []
    for preset in presets:
        for setting in SETTINGS:
            sides = steps(preset, setting, device)
            times = interleave(sides, rounds=rounds, seconds=0.05)
            count = sum(p.numel() for p in sides["fastdiff"].args[0])  # pyright: ignore[reportFunctionMemberAccess]
            old, new = times["eager"].median, times["fastdiff"].median
            speed = setting.fused_bytes * count / new / 1e9
            predicted = setting.eager_bytes / setting.fused_bytes
            rows.append(
                (
                    *(preset, setting.name, f"{old * 1e3:.2f}", f"{new * 1e3:.2f}", f"**{old / new:.2f}x**"),
                    *(f"{predicted:.2f}x", f"{setting.eager_bytes} / {setting.fused_bytes}", f"{speed:.1f}"),
                )
            )
    head = ("parameters of", "step", "eager ms", "fastdiff ms", "ratio", "predicted", "B/parameter", "GB/s")
    print(table(head, rows))


if __name__ == "__main__":
    tyro.cli(main)
