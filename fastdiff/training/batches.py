"""The batch of a training step, a function of (seed, step, row) alone.

Therefore a resumed run draws what an unbroken run draws, and several processes, each of which makes its own rows of the
batch, draw together what one process draws alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fastdiff.data.images import ImageData
from fastdiff.data.loading import ImageLoader
from fastdiff.ops.philox import normal, sample_seeds
from fastdiff.training.augment import Augment, Augmented
from fastdiff.training.config import TrainConfig
from fastdiff.training.timesteps import TimeSampler

NOISE_STREAM, LOW_RES_STREAM = 4, 5  # of Philox; those below are sampling's


@dataclass(frozen=True)
class Batch:
    """Rows of one step: images, the keys of their noise, times, the losses' weights and labels."""

    pixels: Tensor  # [N,C,H,W] uint8
    seeds: Tensor  # [N] int64
    t: Tensor  # [N] int64
    weight: Tensor  # [N] float32
    y: Tensor | None  # [N] int64
    step: int

    def __len__(self) -> int:
        return len(self.t)

    @cached_property
    def x0(self) -> Tensor:
        """[N,C,H,W] float32 in [-1, 1], channels_last."""
        return self.pixels.contiguous(memory_format=torch.channels_last).float().div_(127.5).sub_(1)

    @property
    def noise(self) -> Tensor:
        """Noise of the shape of x0, drawn on the images' device."""
        drawn = normal(self.seeds, self.pixels.shape[1:], step=self.step, stream=NOISE_STREAM)
        return drawn.contiguous(memory_format=torch.channels_last)

    def low_res_noise(self, shape: Sequence[int]) -> Tensor:
        """Noise [N,*shape] whose deviation is uniform in [0, 1], drawn anew for each image."""
        drawn = normal(self.seeds, (math.prod(shape) + 1,), step=self.step, stream=LOW_RES_STREAM)
        deviation = torch.special.ndtr(drawn[:, -1:])
        return (drawn[:, :-1] * deviation).reshape(-1, *shape)

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, start: int, stop: int) -> Batch:
        """Rows start, ..., stop - 1."""
        return self._map(lambda tensor: tensor[start:stop])

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        y = None if self.y is None else f(self.y)
        return Batch(f(self.pixels), f(self.seeds), f(self.t), f(self.weight), y, self.step)


class Batches:
    """Draws the batch of any step.

    Args:
        data: the images.
        config: seed, batch size, mirroring, label dropout, workers.
        null_class: the label that replaces dropped ones; None: no label is dropped.
        rows: the rows of the batch to read and return; None: all.
        augment: a function of the user's, see :class:`fastdiff.training.augment.Augmented`.
    """

    def __init__(
        self,
        data: ImageData,
        config: TrainConfig,
        null_class: int | None,
        rows: slice | None = None,
        augment: Augment | None = None,
    ) -> None:
        self._data, self._config, self._null_class = data, config, null_class
        self._rows = rows or slice(0, config.batch_size)
        self._order = Shuffled(len(data), config.seed)
        pin_memory = config.device.startswith("cuda")
        transform = None if augment is None else Augmented(augment, config.seed, self._rows.start)
        self._loader = ImageLoader(
            data, self._indices, config.workers, pin_memory=pin_memory, transform=transform
        )

    def draw(self, step: int, times: TimeSampler) -> Batch:
        """The rows of update ``step`` (counted from 0), on the CPU."""
        config, rows = self._config, self._rows
        n = config.batch_size
        generator = seeded(config.seed, "step", step)
        pixels, y = self._loader.images(step), self._labels(self._indices(step))
        for flips, dimension in ((config.flip, -1), (config.flip_vertical, -2)):
            if flips:
                mirrored = (torch.rand(n, generator=generator) < 0.5)[rows]
                pixels[mirrored] = pixels[mirrored].flip(dimension)
        if y is not None and self._null_class is not None:
            dropped = (torch.rand(n, generator=generator) < config.label_dropout)[rows]
            y[dropped] = self._null_class
        t, weight = times.draw(n, generator)
        return Batch(pixels, sample_seeds(n, config.seed)[rows], t[rows], weight[rows], y, step)

    def held(self, count: int) -> Batch:
        """Up to ``count`` images, spread over the data and always the same, and their labels."""
        count = min(count, len(self._data))
        indices = torch.linspace(0, len(self._data) - 1, count).long()
        zeros = torch.zeros_like(indices)
        return Batch(self._data.fetch(indices), zeros, zeros, zeros, self._labels(indices), step=0)

    def close(self) -> None:
        """End the processes that decode images."""
        self._loader.close()

    def _indices(self, step: int) -> Tensor:
        return self._order.indices(step, self._config.batch_size)[self._rows]

    def _labels(self, indices: Tensor) -> Tensor | None:
        return None if self._data.labels is None else self._data.labels[indices]


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


def seeded(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    # SeedSequence mixes the words, so that neighbouring numbers give unrelated streams.
    words = np.random.SeedSequence([seed, *numbers, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) & (2**63 - 1))
