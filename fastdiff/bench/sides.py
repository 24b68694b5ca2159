"""The sides of a comparison: a network of a preset with its inputs, and the ways to run it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastdiff.backend import use_backend
from fastdiff.checkpoint import bundled, load
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet, UNetConfig
from fastdiff.zoo import PRESETS

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISE = 0.02  # standard deviation of what replaces zeros


@dataclass(frozen=True)
class Side:
    """One way to run a network.

    Attributes:
        name: in tables and results files.
        backend: a backend that all ops are forced to, ``"eager"`` for PyTorch's own calls; None leaves it to fastdiff.
        memory_format: of weights and images.
        precision: a name of ``DTYPES``, or ``"adm-fp16"`` for guided-diffusion's float16 trunk.
        compiled: through ``torch.compile``.
        captured: as CUDA graphs, where a sampler can record them.
    """

    name: str
    backend: str | None = None
    memory_format: torch.memory_format = torch.channels_last
    precision: str = "float32"
    compiled: bool = False
    captured: bool = False

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Context in which ops run on the side's backend."""
        return on(self.backend)

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> Callable[[], T]:
        """The call on the side's backend."""
        return call_on(self.backend, function, *args, **kwargs)


# Eager in the layout that a user has without asking, and in the one that is often faster.
SIDES = {
    side.name: side
    for side in (
        Side("eager, contiguous", "eager", torch.contiguous_format),
        Side("eager, channels_last", "eager"),
        Side("torch.compile", "eager", compiled=True),
        Side("fastdiff"),
    )
}


def on(backend: str | None) -> contextlib.AbstractContextManager[None]:
    """``use_backend(backend)``, or nothing for None."""
    return use_backend(backend) if backend else contextlib.nullcontext()


def call_on(backend: str | None, function: Callable[..., T], *args: Any, **kwargs: Any) -> Callable[[], T]:
    """A call on one backend; None leaves it to fastdiff."""

    def call() -> T:
        with on(backend):
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class Network:
    """A float32 model in contiguous layout, the arguments of one call, and the tensor to take from its result."""

    model: Any
    inputs: tuple[Tensor, ...]  # image, timesteps, and labels if it takes any
    predict: Callable[..., Tensor] = lambda model, *inputs: model(*inputs)

    def __call__(self) -> Tensor:
        return self.predict(self.model, *self.inputs)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def cast(
        self, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Network:
        """A copy in another dtype and layout, image included."""
        model = copy.deepcopy(self.model).to(dtype=dtype, memory_format=memory_format)
        image = self.inputs[0].to(dtype=dtype, memory_format=memory_format)
        return Network(model, (image, *self.inputs[1:]), self.predict)

    def twin(self) -> Network:
        """Another model that shares the parameters, for sides that do not change them."""
        shared = {id(p): p for p in self.model.parameters()}
        return Network(copy.deepcopy(self.model, shared), self.inputs, self.predict)


def network(preset: str, batch: int, device: str = "cpu") -> Network:
    """A preset's U-Net with the bundled weights if there are any, else as before training, and random inputs.

    Raises:
        FastdiffError: an unknown preset, or one that is not a U-Net of images alone.
    """
    config = PRESETS[preset].model if preset in PRESETS else None
    if not isinstance(config, UNetConfig) or config.low_res is not None:
        fit = [n for n, p in PRESETS.items() if isinstance(p.model, UNetConfig) and p.model.low_res is None]
        raise FastdiffError(f"no preset {preset!r} to measure; known: {', '.join(fit)}")
    model = load(preset).to(device) if preset in bundled() else fresh(config, device)
    model.requires_grad_(True).diffusion = PRESETS[preset].diffusion
    x = torch.randn(batch, config.in_channels, config.image_size, config.image_size).to(device)
    t = torch.full((batch,), 500, device=device)
    labels = torch.arange(batch, device=device)
    return Network(model, (x, t) if config.num_classes is None else (x, t, labels % config.num_classes))


def fresh(config: UNetConfig, device: str = "cpu") -> Any:
    """A U-Net as before training, made on the device, with noise where layers start at zero."""
    torch.manual_seed(0)
    with torch.device(device):
        return fill_zeros(UNet(config)).eval()


def fill_zeros(model: nn.Module) -> nn.Module:
    """Replace zero-initialised parameters by noise, so that no layer's result is zero."""
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=NOISE)
    return model
