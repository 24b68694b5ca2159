"""Speed compared with eager PyTorch, measured at once: same model, same run, in alternation."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.clock import take_turns
from fastdiff.bench.sides import Side
from fastdiff.inference import Optimized, is_for, optimize
from fastdiff.sampling import Sampler

STEPS = 2  # of the sampler, per turn: a first one, and one with history
MIN_TURNS, MAX_TURNS, SECONDS = 2, 7, 5.0  # after a warm-up turn, until the time is spent

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def ratio_to_eager(model: Any, n: int, classes: Tensor | None, options: dict[str, Any]) -> str:
    """The ratio of median times for sampling ``n`` images and how it was measured, in one line.

    Eager PyTorch runs in both memory layouts; its faster one counts.
    """
    handle = optimize(model) if is_for(model) else None
    try:
        return _ratio(model, handle, n, classes, options)
    finally:
        if handle is not None:
            handle.restore()


def _ratio(
    model: Any, handle: Optimized | None, n: int, classes: Tensor | None, options: dict[str, Any]
) -> str:
    options = {**options, "steps": min(STEPS, model.diffusion.steps)}
    sides = [Side("fastdiff"), *(Side(name, "eager", layout) for name, layout in _LAYOUTS.items())]
    models = _by_layout(model)
    turns = {}
    for side in sides:
        sampler = Sampler(models[side.memory_format], memory_format=side.memory_format, **options)
        turns[side.name] = functools.partial(_turn, sampler, side, handle, n, classes)
    take_turns(turns, 1)  # warms up
    samples = take_turns(turns, MAX_TURNS, at_least=MIN_TURNS, limit=SECONDS)
    median = {name: statistics.median(seconds) for name, seconds in samples.items()}
    best = min(_LAYOUTS, key=median.__getitem__)
    return (
        f"{median[best] / median['fastdiff']:.2f}x as fast as eager PyTorch {torch.__version__} in {best}, "
        f"its faster layout (same model and run; {n} images, {options['steps']} steps; "
        f"medians of {len(samples['fastdiff'])} turns)"
    )


def _by_layout(model: Any) -> dict[torch.memory_format, Any]:
    """The model for each memory layout.

    On a CPU this is one model that is converted at each turn; on a GPU a copy for each layout, because captured steps
    hold the addresses of the parameters.
    """
    if next(model.parameters()).device.type == "cpu":
        return dict.fromkeys(_LAYOUTS.values(), model)
    return {layout: copy.deepcopy(model) for layout in _LAYOUTS.values()}


def _turn(
    sampler: Sampler, side: Side, handle: Optimized | None, n: int, classes: Tensor | None
) -> list[float]:
    """Seconds of one run, after the model has been brought into the side's layout."""
    sampler.model.to(memory_format=side.memory_format)
    if handle is not None and side.backend is None:
        handle.refresh()  # another layout is another weight, packed once a run and not once a turn
    with side.context():
        start = time.perf_counter()
        # .cpu() waits for a GPU
        sampler(n, classes=classes, progress=False).cpu()
        return [time.perf_counter() - start]
