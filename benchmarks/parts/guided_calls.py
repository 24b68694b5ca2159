"""guided-diffusion's calls before and after: its formulas on eager PyTorch's layers, and the mirror as it is.

The original package is not needed: with ``use_backend("eager")``, contiguous weights and a ``denoised_fn`` the mirror
makes the calls that its formulas, tested in tests/interop, make of plain PyTorch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from fastdiff.backend import use_backend
from fastdiff.interop.guided_diffusion.script_util import (
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

BATCH, STEPS = 4, 4


def _network(small: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    flags = {"learn_sigma": True, "num_channels": 32 if small else 64, "timestep_respacing": str(STEPS)}
    return create_model_and_diffusion(**model_and_diffusion_defaults() | flags)


def guided_calls(small: bool) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is called -> before, after."""
    sides: list[dict[str, Callable[[], object]]] = []
    for before in (True, False):
        model, diffusion = _network(small)
        if before:
            model.to(memory_format=torch.contiguous_format)
        sides.append(_calls(model, diffusion, before))
    return {name: (sides[0][name], sides[1][name]) for name in sides[0]}


def _calls(model: Any, diffusion: Any, before: bool) -> dict[str, Callable[[], object]]:
    x, t = torch.rand(BATCH, 3, 64, 64) * 2 - 1, torch.arange(BATCH) % STEPS
    formulas = {"denoised_fn": lambda x0: x0} if before else {}  # a step with it is not one kernel

    def context() -> contextlib.AbstractContextManager[None]:
        return use_backend("eager") if before else contextlib.nullcontext()

    def sample() -> None:
        with context(), torch.no_grad():
            diffusion.p_sample_loop(model, x.shape, **formulas)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        with context():
            diffusion.training_losses(model, x, t)["loss"].mean().backward()

    shape = f"{BATCH}x3x64x64, {model.config.model_channels} channels"
    return {f"p_sample_loop, {STEPS} steps, {shape}": sample, f"training_losses and backward, {shape}": train}
