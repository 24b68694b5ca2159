"""A sampling run: its models, and the images that are wanted of them, known by their numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff import Guide, Sampler
from fastdiff.cli.estimate import Work
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.cascade import small_images, upsampler_seeds


@dataclass(frozen=True)
class Run:
    """n images in batches. Image i has the same seed, class and guidance whichever process makes it, and when.

    Args:
        sampler: samples the images.
        enlarger: the sampler of a super-resolution model that enlarges them, or None.
        labels: the class of each image, [n] int64, or None.
        guide: guidance by a classifier, with n rows, or None.
        keep_means: an argument of fastdiff.upsample.
    """

    sampler: Sampler
    enlarger: Sampler | None
    labels: Tensor | None
    guide: Guide | None
    n: int
    batch_size: int
    seed: int
    progress: bool
    keep_means: bool = False

    def rows(self, batches: Sequence[int]) -> list[int]:
        """The numbers of the images of some batches."""
        numbers, size = range(self.n), self.batch_size
        return [row for i in batches for row in numbers[i * size : (i + 1) * size]]

    def classes(self, rows: Sequence[int], sampler: Sampler | None = None) -> Tensor | None:
        """Labels of images for the model of a sampler, or None if it takes none."""
        model: Any = (sampler or self.sampler).model
        return None if self.labels is None or model.config.num_classes is None else self.labels[list(rows)]

    def batches(self, wanted: Sequence[int]) -> Iterator[Tensor]:
        """The images [M,C,H,W] in [-1, 1] of each wanted batch, as they are finished."""
        if not wanted:
            return
        with self.sampler, self.enlarger or contextlib.nullcontext():
            small = self.sampler.batches(**self._request(self.rows(wanted)))
            for index, images in zip(wanted, small, strict=True):
                yield (
                    images
                    if self.enlarger is None
                    else self._enlarge(self.enlarger, images, self.rows([index]))
                )

    def _request(self, rows: list[int]) -> dict[str, Any]:
        return {
            "n": len(rows),
            "classes": self.classes(rows),
            "seeds": sample_seeds(self.n, self.seed)[rows],
            "condition": None if self.guide is None else self.guide.map(lambda t: t[rows]),
            "progress": self.progress,
        }

    def _enlarge(self, enlarger: Sampler, images: Tensor, rows: list[int]) -> Tensor:
        return enlarger(
            len(images),
            classes=self.classes(rows, enlarger),
            seeds=upsampler_seeds(len(images), self.seed, rows[0]),
            **small_images(images, enlarger, self.keep_means),
            progress=self.progress,
        )

    def works(self, count: int) -> list[Work]:
        """What ``count`` images take: the calls of each model, and how to make one of them for a batch."""
        few = range(min(self.batch_size, count))
        batches = count / len(few)
        quiet = replace(self, progress=False)
        first = replace(self.sampler, steps=1, batch_size=None)
        works = [Work(_ended(lambda: first(**quiet._request(list(few)))), self.sampler.calls, batches)]
        if self.enlarger is not None:
            second = replace(self.enlarger, steps=1)
            images = torch.zeros(len(few), *self.sampler.sample_shape, device=_device(self.sampler))
            step = _ended(lambda: quiet._enlarge(second, images, list(few)))
            works.append(Work(step, self.enlarger.calls, batches))
        return works


def _ended(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call, until its result is there: copying it waits for a GPU."""
    return lambda: call().cpu()


def _device(sampler: Sampler) -> torch.device:
    model: Any = sampler.model
    return next(model.parameters()).device
