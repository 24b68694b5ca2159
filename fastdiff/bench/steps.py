"""One training step in eager PyTorch, ``torch.compile`` and fastdiff, on the same weights and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from fastdiff.bench.sides import SIDES, Side
from fastdiff.choices import UTILISATION, Loss
from fastdiff.diffusion import DiffusionConfig
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.loss import training_losses
from fastdiff.diffusion.process import Process
from fastdiff.models import UNet, UNetConfig, build_model
from fastdiff.training.optimizer import EMA, AdamWEMA, clip_factor

_DECAY = 0.9999  # of the moving average, as in ADM's training


@dataclass(frozen=True)
class Options:
    """Options of the measurement of training steps.

    Attributes:
        batch: number of images in a step.
        rounds: number of timings of each implementation, of which the median counts.
        dtype: dtype of the forward and backward pass (autocast); weights stay float32.
        compile: also time ``torch.compile`` with its default options.
        width: model_channels in place of the preset's; None: the preset's.
        utilisation: utilisation of the V100 in the conversion.
    """

    batch: int = 4
    rounds: int = 5
    dtype: torch.dtype = torch.float32
    compile: bool = True
    width: int | None = None
    utilisation: float = UTILISATION


def make_step(
    side: str, config: UNetConfig, diffusion: DiffusionConfig, options: Options, device: torch.device
) -> Step:
    """A step of one of ``SIDES``, with the same weights and images for all of them."""
    chosen = SIDES[side]
    torch.manual_seed(0)
    model = build_model(config).train()
    assert isinstance(model, UNet)
    placed = model.to(device, memory_format=chosen.memory_format)  # pyright: ignore[reportCallIssue]
    inputs = _inputs(config, diffusion, options.batch, device)
    return Step(chosen, placed, make_process(diffusion), inputs, options.dtype)


def sides(
    config: UNetConfig, diffusion: DiffusionConfig, options: Options, device: torch.device
) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """A function that makes one step for each side, and why a side is missing."""
    found: dict[str, Callable[[], object]] = {}
    skipped = []
    for name, side in SIDES.items():
        if side.compiled and not options.compile:
            continue
        step = make_step(name, config, diffusion, options, device)
        try:
            if side.compiled:
                step()
        except Exception as reason:  # another compiler's failure is its own: the rest is measured
            skipped.append(f"{name} failed: {type(reason).__name__}: {str(reason).splitlines()[0]}")
        else:
            found[name] = step
    return found, skipped


def _inputs(
    config: UNetConfig, diffusion: DiffusionConfig, batch: int, device: torch.device
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    size, channels = config.image_size, config.in_channels
    discrete = diffusion.parametrisation == "discrete"
    inputs: dict[str, Any] = {
        "x0": torch.rand(batch, channels, size, size, generator=g) * 2 - 1,
        "noise": torch.randn(batch, channels, size, size, generator=g),
        "t": torch.randint(diffusion.steps, (batch,), generator=g)
        if discrete
        else torch.rand(batch, generator=g),
    }
    if config.num_classes is not None:
        inputs["y"] = torch.randint(config.num_classes, (batch,), generator=g)
    if config.low_res is not None:
        inputs["low_res"] = torch.rand(batch, channels, size // 4, size // 4, generator=g) * 2 - 1
    return {name: value.to(device) for name, value in inputs.items()}


class Step:
    """Loss, backward, clipping to norm 1, AdamW, moving average.

    Args:
        side: how to make it: with fastdiff's optimizer, or PyTorch's on PyTorch's calls.
        model: in train mode, on its device and in its layout.
        diffusion: the process.
        inputs: x0, noise, t and the model's conditions.
        dtype: of autocast; float32 switches it off.
    """

    def __init__(
        self,
        side: Side,
        model: UNet,
        diffusion: Process,
        inputs: dict[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self.model, self._diffusion, self._inputs, self._dtype = model, diffusion, inputs, dtype
        self._side, self._fused = side, side.backend != "eager"
        self._call: nn.Module = torch.compile(model) if side.compiled else model  # pyright: ignore[reportAttributeAccessIssue]
        self._ema = EMA(model, _DECAY)
        self._torch = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0, fused=True)
        self._own = AdamWEMA(model.parameters(), 1e-4, weight_decay=0.0, ema_rates=(_DECAY,))
        self._own.use_averages(0, self._ema.model.parameters())
        self._loss: Loss = "rescaled_hybrid" if diffusion.config.learns_variance else "mse"

    def __call__(self) -> None:
        with self._side.context():
            self._step()

    def loss(self) -> Tensor:
        """The forward pass alone."""
        x0 = self._inputs["x0"]
        with torch.autocast(x0.device.type, self._dtype, enabled=self._dtype != torch.float32):
            losses = training_losses(self._diffusion, self._call, **self._inputs, loss=self._loss)
        return losses["loss"].mean()

    def _step(self) -> None:
        loss = self.loss()
        self._torch.zero_grad(set_to_none=True)
        loss.backward()
        if self._fused:
            norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            self._own.step(grad_factor=clip_factor(norm, 1.0))
            return
        clip_grad_norm_(self.model.parameters(), 1.0)
        self._torch.step()
        self._ema.update(self.model, 10**6)  # a late step: the decay is constant
