"""What a training step sees: a function of (seed, step) alone.

So a resumed run draws what an unbroken one draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff.training.config import TrainConfig
from fastdiff.training.data import ImageData
from fastdiff.training.loading import ImageLoader
from fastdiff.training.timesteps import LossSecondMomentTimes, UniformTimes


class Batch(NamedTuple):
    """Inputs of one step: images, noise, times, the losses' weights and labels."""

    x0: Tensor  # [N,C,H,W] float32 in [-1, 1], channels_last
    noise: Tensor  # like x0
    t: Tensor  # [N] int64
    weight: Tensor  # [N] float32
    y: Tensor | None  # [N] int64

    def to(self, device: torch.device) -> Batch:
        return Batch(*(None if part is None else part.to(device) for part in self))  # pyright: ignore[reportArgumentType]


class Batches:
    """Draws the batch of any step.

    Args:
        data: the images.
        config: seed, batch size, mirroring, label dropout.
        null_class: the label that replaces dropped ones; None drops none.
    """

    def __init__(self, data: ImageData, config: TrainConfig, null_class: int | None) -> None:
        self._data, self._config, self._null_class = data, config, null_class
        self._order = Shuffled(len(data), config.seed)
        self._loader = ImageLoader(
            data,
            lambda step: self._order.indices(step, config.batch_size),
            config.workers,
            pin_memory=config.device.startswith("cuda"),
        )

    def draw(self, step: int, times: UniformTimes | LossSecondMomentTimes) -> Batch:
        """The batch of update ``step`` (counted from 0), on the CPU."""
        config = self._config
        n = config.batch_size
        generator = seeded(config.seed, "step", step)
        indices = self._order.indices(step, n)
        x0 = self._loader.images(step).float().div_(127.5).sub_(1)  # [-1, 1]
        if config.flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            x0[mirrored] = x0[mirrored].flip(-1)
        y = None
        if self._data.labels is not None:
            y = self._data.labels[indices]
            if self._null_class is not None:
                y[torch.rand(n, generator=generator) < config.label_dropout] = self._null_class
        t, weight = times.draw(n, generator)
        noise = torch.randn(x0.shape, generator=generator)
        x0, noise = (a.contiguous(memory_format=torch.channels_last) for a in (x0, noise))
        return Batch(x0, noise, t, weight, y)

    def close(self) -> None:
        """End the processes that decode images."""
        self._loader.close()


class Shuffled:
    """The order in which a run visits N images: a fresh permutation each epoch, from (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, batch_size: int) -> Tensor:
        """Images [batch_size] int64 of a step; a batch may reach into the next epoch."""
        position = step * batch_size
        parts: list[Tensor] = []
        while batch_size:
            epoch, start = divmod(position, self._count)
            parts.append(self._permutation(epoch)[start : start + batch_size])
            position += len(parts[-1])
            batch_size -= len(parts[-1])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = seeded(self._seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(self._count, generator=generator)
        return self._order


def seeded(seed: int, purpose: str, number: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    # SeedSequence mixes the words, so that neighbouring numbers give unrelated streams.
    words = np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) & (2**63 - 1))
