"""What does training keep for its backward, and how long is a step, with recompute "none", "selective" and "full"?

    python benchmarks/memory.py [--presets NAME[:WIDTH] ...] [--batch N] [--rounds N]

Bytes are those of PyTorch's own allocations: held between forward and backward, and at most at any moment of the two;
parameters and their gradients are left out of the first and in the second. Predictions are made of the shapes that
layers see, before anything is measured. Steps take turns in one run. Prints Markdown.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fastdiff.bench import machine
from fastdiff.bench.clock import interleave
from fastdiff.bench.measure import reduced
from fastdiff.bench.report import table
from fastdiff.bench.steps import Options, make_step
from fastdiff.models import UNet, UNetConfig
from fastdiff.models.config import RECOMPUTE
from fastdiff.nn import AttentionBlock, ResBlock
from fastdiff.zoo import PRESETS

MB = 2.0**20


def allocations(function: Callable[[], Any]) -> tuple[int, int, Any]:
    """-> bytes still allocated after the call, the most at any moment of it, and what it returned."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events = profiler.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = [e for e in events if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        most = max(most, held)
    return held, most, result


def predicted(model: UNet, forward: Callable[[], Tensor]) -> dict[str, float]:
    """Bytes that "selective" does not keep, and those that "full" does, by shapes: what convolutions behind norms
    read, masks of dropout, and a norm's result where it is then halved; blocks' inputs."""
    dropped, inputs = [], []
    watched: list[tuple[nn.Module, list[float], float]] = [(model.out[2], dropped, 1), (model.out, inputs, 1)]
    for module in model.modules():
        if isinstance(module, ResBlock):
            drops = bool(module.out_layers[2].p)  # a mask of float32, of which a byte remains
            watched.append((module.in_layers[2], dropped, 5 if module.resample == "down" else 1))
            watched.append((module.out_layers[3], dropped, 1.75 if drops else 1))
        elif isinstance(module, AttentionBlock):
            watched.append((module.norm, dropped, 1))
    for block in (*model.input_blocks, model.middle_block, *model.output_blocks):
        watched.append((block, inputs, 1))

    def note(to: list[float], times: float, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        to.append(times * args[0].nbytes)

    handles = [
        module.register_forward_pre_hook(functools.partial(note, to, times)) for module, to, times in watched
    ]
    with torch.no_grad():
        forward()
    for handle in handles:
        handle.remove()
    return {"selective": sum(dropped), "full": sum(inputs)}


def rows(name: str, config: UNetConfig, preset: str, options: Options, rounds: int) -> list[tuple[str, ...]]:
    step = make_step("fastdiff", config, PRESETS[preset].diffusion, options, torch.device("cpu"))
    steps: dict[str, Any] = {}
    for recompute in RECOMPUTE:
        steps[recompute] = copy.deepcopy(step)
        steps[recompute].model.recompute = recompute
    shapes = predicted(step.model, step.loss)
    memory = {}
    for recompute, s in steps.items():
        s()  # the optimizer's state, and whatever else is made once
        s.model.zero_grad(set_to_none=True)
        held, most, loss = allocations(s.loss)
        _, later, _ = allocations(loss.backward)
        memory[recompute] = held, max(most, held + later)
    times = interleave(steps, rounds=rounds, seconds=0.0)
    expected = {
        "none": "",
        "selective": f"{(memory['none'][0] - shapes['selective']) / MB:.1f}",
        "full": f"{shapes['full'] / MB:.1f}",
    }
    base = times["none"].median
    return [
        (
            *(name, recompute, expected[recompute], f"{memory[recompute][0] / MB:.1f}"),
            *(f"{memory[recompute][0] / memory['none'][0]:.2f}", f"{memory[recompute][1] / MB:.1f}"),
            *(f"{times[recompute].median * 1e3:.1f}", f"{times[recompute].median / base:.2f}"),
        )
        for recompute in RECOMPUTE
    ]


def main(presets: tuple[str, ...] = ("fashion-mnist", "adm-64:32"), batch: int = 4, rounds: int = 7) -> None:
    """Measure and print.

    Args:
        presets: Networks by name; a number after a colon replaces the preset's model_channels.
        batch: Images per step.
        rounds: Number of turns of each side.
    """
    print(
        f"{machine.device_name()}, {machine.processor()}, torch {torch.__version__}, batch {batch}, {rounds} turns\n"
    )
    body = []
    for given in presets:
        preset, _, width = given.partition(":")
        config = PRESETS[preset].model
        assert isinstance(config, UNetConfig)
        if width:
            config = reduced(config, int(width))
        name = f"{preset}, reduced to {width} channels" if width else preset
        body += rows(name, config, preset, Options(batch=batch, compile=False), rounds)
    head = ("network", "recompute", "held MB, predicted", "held MB", "share", "peak MB", "step ms", "ratio")
    print(table(head, body))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
