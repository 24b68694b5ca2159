"""What benchmarks/engine.py compares: a network with its inputs, and the ways to run it that need nothing but torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet, UNetConfig
from fastdiff.zoo import PRESETS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUNDLED = ("fashion-mnist",)  # presets whose weights come with the package
NOISE = 0.02  # deviation of what replaces zeros


@dataclass(frozen=True)
class Network:
    """A float32 model in contiguous layout, the arguments of one call, and how to get a tensor out of it."""

    model: Any
    inputs: tuple[Tensor, ...]  # image, timesteps, and labels if it takes any
    call: Callable[..., Tensor]  # (model, *inputs) -> prediction

    def __call__(self) -> Tensor:
        return self.call(self.model, *self.inputs)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def cast(
        self, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Network:
        """A copy in another dtype and layout, image included."""
        model = copy.deepcopy(self.model).to(dtype=dtype, memory_format=memory_format)
        image = self.inputs[0].to(dtype=dtype, memory_format=memory_format)
        return Network(model, (image, *self.inputs[1:]), self.call)

    def twin(self) -> Network:
        """Another model with the same parameters in memory, for sides that leave them as they are."""
        shared = {id(p): p for p in self.model.parameters()}
        return Network(copy.deepcopy(self.model, shared), self.inputs, self.call)


@dataclass(frozen=True)
class Side:
    """One way to run a network."""

    name: str
    dtype: str
    run: Callable[[], Tensor]
    network: Network  # whose float64 copy is the truth
    build_seconds: float | None = None  # compilation, where it takes long


def fill_zeros(model: nn.Module) -> None:
    """Noise in place of parameters that are zero at first, so that no layer's work is for nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=NOISE, generator=generator)


def network(preset: str, batch: int) -> Network:
    """A preset's U-Net with the bundled weights if there are any, else as before training, and random inputs."""
    config = PRESETS[preset].model if preset in PRESETS else None
    if not isinstance(config, UNetConfig) or config.low_res is not None:
        fit = [n for n, p in PRESETS.items() if isinstance(p.model, UNetConfig) and p.model.low_res is None]
        raise FastdiffError(f"no preset {preset!r} to measure; known: {', '.join(fit)}")
    torch.manual_seed(0)
    model = fastdiff.load(preset) if preset in BUNDLED else UNet(config)
    fill_zeros(model)
    x = torch.randn(batch, config.in_channels, config.image_size, config.image_size)
    t = torch.full((batch,), 500)
    inputs = (x, t) if config.num_classes is None else (x, t, torch.arange(batch) % config.num_classes)
    return Network(model.eval(), inputs, lambda model, *inputs: model(*inputs))


def eagerly(network: Network) -> Callable[[], Tensor]:
    """Every op as PyTorch's own calls."""

    def run() -> Tensor:
        with use_backend("eager"):
            return network()

    return run


def eager_sides(network: Network) -> list[Side]:
    """PyTorch as it is, in both layouts."""
    return [
        Side("eager", "float32", eagerly(network), network),
        Side("eager, channels_last", "float32", _eager(network, "float32", torch.channels_last), network),
        Side("eager", "bfloat16", _eager(network, "bfloat16", torch.contiguous_format), network),
        Side("eager, channels_last", "bfloat16", _eager(network, "bfloat16", torch.channels_last), network),
    ]


def _eager(network: Network, dtype: str, memory_format: torch.memory_format) -> Callable[[], Tensor]:
    return eagerly(network.cast(DTYPES[dtype], memory_format))


def fastdiff_sides(network: Network, name: str = "fastdiff") -> list[Side]:
    """``fastdiff.optimize`` in both dtypes; raises FastdiffError where it is not for this model."""
    sides = []
    for dtype in DTYPES:
        twin = network.twin()
        fastdiff.optimize(twin.model, DTYPES[dtype])
        sides.append(Side(name, dtype, twin.__call__, network))
    return sides


def truth(network: Network) -> Tensor:
    """The prediction in float64."""
    return eagerly(network.cast(torch.float64))()


def error(got: Tensor, want: Tensor) -> float:
    """Relative distance |got - want| / |want|."""
    return float((got.double() - want).norm() / want.norm())
