"""Augmentation by a function of the user's, such as torchvision's transforms; a step is always augmented in one way."""

from __future__ import annotations

import contextlib
import importlib
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.errors import FastdiffError, reason

Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmented:
    """``augment`` on the images of a step, one by one, as [1,C,H,W] uint8, since torchvision draws once for each call.

    The random numbers of torch, NumPy and Python are seeded for each image, by the run's seed, the step and the row of
    the batch, so that a run that goes on and one of several processes have the same images. They are restored after it.

    Args:
        augment: returns an image of the same shape and dtype.
        seed: seed of the run.
        first_row: row of the whole batch that the first image is.
    """

    augment: Augment
    seed: int
    first_row: int = 0

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """[n,C,H,W] uint8 of ``step`` -> the same, augmented.

        Raises:
            FastdiffError: the function raises an error or returns anything else than such an image.
        """
        with _restored():
            return torch.cat([self._one(image[None], step, row) for row, image in enumerate(images)])

    def _one(self, image: Tensor, step: int, row: int) -> Tensor:
        words = np.random.SeedSequence([self.seed, step, self.first_row + row, *b"augment"]).generate_state(3)
        for seed, word in zip((torch.manual_seed, np.random.seed, random.seed), words.tolist(), strict=True):
            seed(word)
        try:
            found = self.augment(image)
        except Exception as error:
            raise FastdiffError(
                f"augment, {describe(self.augment)}, failed on an image: {type(error).__name__}: {reason(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.dtype != torch.uint8 or found.shape != image.shape:
            given = (
                f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise FastdiffError(
                f"augment must turn an image, uint8 {list(image.shape)}, into one of the same dtype and shape; "
                f"{describe(self.augment)} returned {given}"
            )
        return found


def describe(augment: Augment) -> str:
    """A function's name, or a module's own description, in which torchvision's transforms have their parameters."""
    if isinstance(augment, nn.Module):
        return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(augment)).split())
    return getattr(augment, "__qualname__", type(augment).__qualname__)


def import_augment(name: str) -> Augment:
    """The function or object ``module:name``, whose module may be in the current folder.

    Raises:
        FastdiffError: another form, a module that cannot be imported, no such name, or nothing that can be called.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise FastdiffError(
            f"--augment needs module:name, such as transforms:train for transforms.py, got {name!r}"
        )
    sys.path.insert(0, "")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's, and may raise anything
        raise FastdiffError(
            f"cannot import --augment {name}: {type(error).__name__}: {reason(error)}"
        ) from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise FastdiffError(f"--augment {name} is {type(found).__name__}, which cannot be called")
    return cast("Augment", found)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """The global random numbers are afterwards where they were before."""
    theirs, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(theirs)
        random.setstate(python)
