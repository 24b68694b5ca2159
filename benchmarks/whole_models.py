"""Whole U-Nets to time: presets with fresh weights, and the sides that are compared."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.models import UNet, UNetConfig
from fastdiff.zoo import PRESETS

BATCH = {"fashion-mnist": 16, "ddpm-cifar10": 4}  # preset -> images
# Eager in the layout that a user has without asking, and in the one that is often faster.
SIDES = {
    "eager": ("eager", torch.contiguous_format),
    "eager-channels_last": ("eager", torch.channels_last),
    "fastdiff": (None, torch.channels_last),
}


class Setting(NamedTuple):
    """A model, its inputs for one call, and the context to call it in."""

    model: Any
    x: Tensor
    t: Tensor
    y: Tensor | None
    memory_format: torch.memory_format
    backend: str | None

    def context(self) -> Any:
        return use_backend(self.backend) if self.backend else contextlib.nullcontext()


def setting(preset: str, side: str, device: str) -> Setting:
    """The preset's network on one of ``SIDES``: the same weights and inputs every time."""
    config = PRESETS[preset].model
    assert isinstance(config, UNetConfig)
    backend, memory_format = SIDES[side]
    torch.manual_seed(0)
    model: Any = UNet(config).to(device)
    model.diffusion = PRESETS[preset].diffusion
    n, size = BATCH[preset], config.image_size
    x = torch.randn(n, config.in_channels, size, size).to(device).to(memory_format=memory_format)
    t = torch.full((n,), 500, device=device)
    y = torch.arange(n, device=device) % config.num_classes if config.num_classes else None
    return Setting(model.to(memory_format=memory_format), x, t, y, memory_format, backend)


def forward(s: Setting) -> Tensor:
    with s.context(), torch.inference_mode():
        return s.model.eval()(s.x, s.t, s.y)


def forward_backward(s: Setting) -> None:
    """What a training step does before the optimizer's part."""
    with s.context():
        s.model.train()(s.x, s.t, s.y).square().mean().backward()
    s.model.zero_grad(set_to_none=True)
