"""What the forward and backward pass compute in, and the loss scale that float16 needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastdiff.training.config import Precision

GROWTH, BACKOFF = 2.0, 0.5
INTERVAL = 2000  # steps without an overflow after which the scale grows
SMALLEST = 1.0  # gradients that overflow at this scale are not float16's fault


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a model computes in ``precision``, as PyTorch's autocast has it."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


@dataclass
class LossScale:
    """The factor that keeps float16's small gradients from vanishing, by ``torch.amp.GradScaler``'s policy.

    A step whose gradient is not finite is left out and halves the scale; 2000 good ones in a row double it. It is kept
    on the host, and the gradient is divided by it inside the optimizer's one pass.
    """

    scale: float = 2.0**16
    good_steps: int = 0

    def update(self, *, finite: bool) -> None:
        """After a step whose scaled gradient was finite, or not."""
        self.good_steps += 1
        if not finite:
            self.scale *= BACKOFF
            self.good_steps = 0
        elif self.good_steps == INTERVAL:
            self.scale *= GROWTH
            self.good_steps = 0

    @property
    def collapsed(self) -> bool:
        """Whether gradients overflow even unscaled: the run diverged."""
        return self.scale < SMALLEST
