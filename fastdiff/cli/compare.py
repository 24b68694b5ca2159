"""How much faster than eager PyTorch, measured on the spot: same model, same run, turn by turn."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.engine import Optimized, is_for, optimize
from fastdiff.sampling import Sampler

STEPS = 2  # of the sampler, per turn: a first one, and one with history
MIN_TURNS, MAX_TURNS, SECONDS = 2, 7, 5.0  # after a warm-up turn, until the time is spent

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def ratio_to_eager(model: Any, n: int, classes: Tensor | None, options: dict[str, Any]) -> str:
    """One line: the ratio of median times for sampling ``n`` images, and how it was measured.

    Eager PyTorch runs in both memory layouts, and the one that suits it better is what counts.
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
    sides = {"fastdiff": ("channels_last", None)} | {layout: (layout, "eager") for layout in _LAYOUTS}
    times: dict[str, list[float]] = {side: [] for side in sides}
    models = _by_layout(model)
    samplers = {
        side: Sampler(models[layout], memory_format=_LAYOUTS[layout], **options)
        for side, (layout, _) in sides.items()
    }
    turn, end = 0, float("inf")
    while turn <= MIN_TURNS or (turn <= MAX_TURNS and time.perf_counter() < end):
        for side, (layout, backend) in sides.items():
            models[layout].to(memory_format=_LAYOUTS[layout])
            if handle is not None and backend is None:
                handle.refresh()  # another layout is another weight, packed once a run and not once a turn
            seconds = _timed(samplers[side], n, classes, backend)
            if turn:
                times[side].append(seconds)
        if not turn:
            end = time.perf_counter() + SECONDS
        turn += 1
    median = {side: statistics.median(t) for side, t in times.items()}
    best = min(_LAYOUTS, key=median.__getitem__)
    return (
        f"{median[best] / median['fastdiff']:.2f}x as fast as eager PyTorch {torch.__version__} in {best}, "
        f"its faster layout (same model and run; {n} images, {options['steps']} steps; "
        f"medians of {turn - 1} turns)"
    )


def _by_layout(model: Any) -> dict[str, Any]:
    """The model for each layout: the one there is, to be converted at each turn.

    On a GPU copies that stay, for captured steps know the addresses of parameters.
    """
    if next(model.parameters()).device.type == "cpu":
        return dict.fromkeys(_LAYOUTS, model)
    return {layout: copy.deepcopy(model) for layout in _LAYOUTS}


def _timed(sampler: Sampler, n: int, classes: Tensor | None, backend: str | None) -> float:
    with use_backend(backend) if backend else contextlib.nullcontext():
        start = time.perf_counter()
        # .cpu() waits for a GPU
        sampler(n, classes=classes, progress=False).cpu()
        return time.perf_counter() - start
