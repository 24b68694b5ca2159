"""How fast are diffusers' and guided-diffusion's calls before and after fastdiff? Turn by turn in one run.

    python benchmarks/interop.py [--rounds N] [--small]

Prints Markdown and writes benchmarks/results/interop-<machine>.json. Weights are random: times do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import diffusers
import torch
import tyro
from parts import RESULTS
from parts.guided_calls import guided_calls

import fastdiff
from fastdiff.bench import machine, results
from fastdiff.bench.clock import interleave
from fastdiff.bench.report import table
from fastdiff.interop import diffusers as ours

# DDPM's U-Net for CIFAR-10, as the pipelines of Ho et al. 2020 have it.
CIFAR = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_eps": 1e-6,
}
SMALL = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 8}
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


@dataclass(frozen=True)
class Row:
    what: str
    before_ms: float
    fastdiff_ms: float
    ratio: float


def _row(
    what: str, theirs: Callable[[], object], mine: Callable[[], object], rounds: int, seconds: float
) -> Row:
    times = interleave({"theirs": theirs, "mine": mine}, rounds=rounds, seconds=seconds)
    before, after = times["theirs"].median, times["mine"].median
    return Row(what, 1e3 * before, 1e3 * after, before / after)


def _unet(small: bool, channels_last: bool) -> Any:
    torch.manual_seed(0)
    unet: Any = diffusers.UNet2DModel(**CIFAR | (SMALL if small else {}))
    return unet.to(memory_format=torch.channels_last) if channels_last else unet


def unet_rows(rounds: int, small: bool) -> list[Row]:
    """Forward, and forward with backward, of one U-Net as it is and of its accelerated twin, in both layouts."""
    rows = []
    for layout in ("contiguous", "channels_last"):
        last = layout == "channels_last"
        theirs, mine = _unet(small, last), _unet(small, last)
        fastdiff.accelerate(mine)
        x, t = torch.randn(4, 3, 32, 32), torch.tensor(500)
        x = x.contiguous(memory_format=torch.channels_last) if last else x

        def forward(unet: Any, x: torch.Tensor = x, t: torch.Tensor = t) -> None:
            with torch.inference_mode():
                unet(x, t)

        def train(unet: Any, x: torch.Tensor = x, t: torch.Tensor = t) -> None:
            unet(x, t).sample.square().mean().backward()

        for name, function in (("forward", forward), ("forward and backward", train)):
            what = f"UNet2DModel, {layout}, batch 4: {name}"
            rows.append(
                _row(what, lambda f=function, u=theirs: f(u), lambda f=function, u=mine: f(u), rounds, 0.1)
            )
        if not small:
            optimized = _unet(small, last).eval()
            fastdiff.optimize(optimized)
            what = f"UNet2DModel, {layout}, batch 4: forward, fastdiff.optimize"
            rows.append(_row(what, lambda u=theirs: forward(u), lambda u=optimized: forward(u), rounds, 0.1))
    return rows


def scheduler_rows(rounds: int) -> list[Row]:
    """One step on a batch of 16 images of 64x64, noise drawn by torch on both sides."""
    x, m = torch.randn(16, 3, 64, 64), torch.randn(16, 3, 64, 64)
    rows = []
    for name in SCHEDULERS:
        sides = []
        for make in (getattr(diffusers, name), getattr(ours, f"Fast{name}")):
            scheduler = make()
            scheduler.set_timesteps(50)
            scheduler.set_begin_index(10) if hasattr(scheduler, "set_begin_index") else None
            t = scheduler.timesteps[10]
            scheduler.scale_model_input(x, t)

            def step(scheduler: Any = scheduler, t: torch.Tensor = t) -> None:
                if hasattr(scheduler, "_step_index"):
                    scheduler._step_index = 10  # the same step again
                scheduler.step(m, t, x)

            sides.append(step)
        rows.append(_row(f"{name}.step, 16x3x64x64", sides[0], sides[1], rounds, 0.02))
    return rows


def main(rounds: int = 9, small: bool = False) -> None:
    """Measure and print.

    Args:
        rounds: Number of turns of each side.
        small: Small networks, and no results file: a check that everything runs.
    """
    rows = [*scheduler_rows(rounds), *unet_rows(rounds, small)]
    rows += [_row(what, *sides, rounds, 0.1) for what, sides in guided_calls(small).items()]
    heads = ["", "before", "fastdiff", "times as fast"]
    body = [[r.what, f"{r.before_ms:.2f} ms", f"{r.fastdiff_ms:.2f} ms", f"**{r.ratio:.2f}**"] for r in rows]
    about = machine.describe("cpu", "diffusers") | {"rounds": rounds}
    print(machine.in_words(about), table(heads, body), sep="\n\n")
    if not small:
        file = RESULTS / results.file_name("interop")
        results.write(file, about, rows=[asdict(r) for r in rows])
        print(f"\nwrote {file.name}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
