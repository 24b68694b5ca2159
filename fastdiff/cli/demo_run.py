"""What the page of ``fastdiff demo`` computes: each run yields what is to be seen of it, step by step."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.checkpoint.load import bundled
from fastdiff.choices import INVERSION, Usual, usual_sampling
from fastdiff.cli.inpaint import with_known_pixels
from fastdiff.cli.shared import class_number, free_weights, load_denoiser
from fastdiff.data.fit import fit_image
from fastdiff.errors import FastdiffError
from fastdiff.models import UNetConfig
from fastdiff.sampling.api import from_uint8
from fastdiff.zoo import PRESETS

if TYPE_CHECKING:
    from PIL import Image

EACH, NO_CLASS = "each class in turn", "no class"
PREVIEWS = 24  # of a run at most: more would keep the page busier than the model
PIXELS = 64 * 64 * 64  # of all images of a run: 64 of 64 x 64


@dataclass(frozen=True)
class Shown:
    """A model of the page."""

    name: str
    model: Any

    @property
    def size(self) -> int:
        return self.model.config.image_size

    @property
    def channels(self) -> int:
        return self.model.config.in_channels

    @property
    def most(self) -> int:
        """The largest number of images at a time."""
        return max(2, min(64, PIXELS // self.size**2))

    @property
    def class_names(self) -> list[str]:
        count = self.model.config.num_classes or 0
        return list(self.model.class_names) or [str(k) for k in range(count)]

    @property
    def classes(self) -> list[str]:
        """The choices for all images of a run: the classes, and none, for a model that can do without."""
        without = [NO_CLASS] if self.guidable else []
        return [*without, *self.class_names]

    @property
    def guidable(self) -> bool:
        return self.model.null_class is not None

    @property
    def about(self) -> str:
        colours = "RGB" if self.channels == 3 else "grey"
        count = self.model.config.num_classes
        kinds = f"{count} classes" if count else "no classes"
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"{self.size} × {self.size} {colours}, {kinds}, {parameters:.1f} million parameters"

    def usual(self, usual: Usual | None = None) -> tuple[str, int]:
        """Sampler and steps where none are chosen."""
        sampler, steps = usual_sampling(None, None, self.model.diffusion.is_consistent, usual)
        return sampler, int(steps)

    def label(self, chosen: str | None) -> int | None:
        """The number of a class; None for NO_CLASS and for models without classes."""
        if not self.class_names or chosen in (None, "", NO_CLASS):
            return None
        return class_number(chosen, len(self.class_names), self.class_names)

    def labels(self, chosen: str | None, n: int) -> list[int] | None:
        """The classes of n images."""
        if self.class_names and chosen == EACH:
            return [i % len(self.class_names) for i in range(n)]
        label = self.label(chosen)
        return None if label is None else [label] * n

    def fitted(self, picture: Image.Image) -> np.ndarray:
        """A picture of any size and mode as the model's, [H,W,C] uint8: scaled, and cropped to the middle."""
        return fit_image(picture, self.size, self.channels, "crop")


def load_models(checkpoints: Sequence[str], device: str) -> dict[str, Shown]:
    """The models by name; those that come with fastdiff and make images from noise, if no checkpoints are given.

    Raises:
        FastdiffError: see :func:`fastdiff.cli.shared.load_denoiser`.
    """
    models = {}
    for name in checkpoints or _bundled():
        models[name] = Shown(name, load_denoiser(name, None, device))
        free_weights(models[name].model)
    return models


def _bundled() -> list[str]:
    configs = {name: preset.model for name, preset in PRESETS.items() if name in bundled()}
    return [name for name, c in configs.items() if isinstance(c, UNetConfig) and c.low_res is None]


class Frame(NamedTuple):
    """What is to be seen of a run after a step, or at its end."""

    pixels: np.ndarray  # [N,H,W,C] uint8: the images, or the model's estimate of them
    captions: list[str]
    step: int
    steps: int
    seconds: float
    done: bool = False


def sample(
    shown: Shown,
    chosen: str | None,
    n: int,
    sampler: str,
    steps: int,
    guidance_scale: float | None,
    seed: int | None,
) -> Frames:
    """As ``fastdiff.sample``."""
    labels = shown.labels(chosen, n)
    options: dict[str, Any] = {
        "sampler": sampler,
        "steps": steps,
        "guidance_scale": None if guidance_scale in (None, 1) else guidance_scale,
        "classes": labels,
        "seed": whole(seed),
    }
    captions = [""] * n if labels is None else [shown.class_names[k] for k in labels]
    return Frames(lambda follow: fastdiff.sample(shown.model, n, progress=follow, **options), captions)


def inpaint(
    shown: Shown,
    known: np.ndarray | None,
    mask: np.ndarray | None,
    chosen: str | None,
    n: int,
    sampler: str,
    steps: int,
    seed: int | None,
) -> Frames:
    """As ``fastdiff.inpaint``; known [H,W,C] uint8, mask [H,W] bool, True where to fill."""
    if known is None or mask is None:
        raise FastdiffError("there is no picture to fill in; take a sample or upload one")
    if not mask.any():
        raise FastdiffError("nothing is hidden yet; paint with the brush over what is to be filled in")
    images = from_uint8(torch.tensor(known)[None])
    options: dict[str, Any] = {
        "sampler": sampler,
        "steps": steps,
        "classes": shown.label(chosen),
        "seed": whole(seed),
    }
    return Frames(
        lambda follow: fastdiff.inpaint(
            shown.model, images, torch.tensor(mask), n, progress=follow, **options
        ),
        [""] * n,
        lambda pixels: with_known_pixels(pixels, known[None], mask),
    )


def interpolate(
    shown: Shown, first: int | np.ndarray, last: int | np.ndarray, n: int, chosen: str | None, steps: int
) -> Frames:
    """As ``fastdiff.interpolate``; ends are seeds, or images [H,W,C] uint8."""
    a, b = (from_uint8(torch.tensor(end)) if isinstance(end, np.ndarray) else end for end in (first, last))
    sampler, _ = shown.usual(INVERSION)
    options: dict[str, Any] = {"sampler": sampler, "steps": steps, "classes": shown.label(chosen)}
    captions = [f"{k / max(n - 1, 1):.2f}" for k in range(n)]
    return Frames(
        lambda follow: fastdiff.interpolate(shown.model, a, b, n, progress=follow, **options), captions
    )


def whole(seed: int | None) -> int:
    """The seed of a field that may be empty."""
    if seed is None:
        raise FastdiffError("give a seed: a whole number from 0 to 4294967295")
    return int(seed)


class Frames(Iterator[Frame]):
    """What is to be seen of ``work(progress)``, which runs in a thread of its own until it is done or stopped.

    Args:
        captions: one for each image.
        finish: makes what is shown of the images' bytes.
    """

    def __init__(
        self,
        work: Callable[[Callable[[fastdiff.Progress], object]], Tensor],
        captions: list[str],
        finish: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
    ) -> None:
        self._captions, self._finish = captions, finish
        self._news: queue.SimpleQueue[Frame | BaseException | None] = queue.SimpleQueue()  # None: no more
        self._stopped, self._start = threading.Event(), time.perf_counter()
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def __next__(self) -> Frame:
        new = self._news.get()
        if isinstance(new, Frame) and not self.stopped:
            return new
        self._news.put(None)  # also for a further call
        if isinstance(new, BaseException):
            raise new
        raise StopIteration

    def stop(self) -> None:
        """End the iteration now, and the work after its step."""
        self._stopped.set()
        self._news.put(None)

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def _run(self, work: Callable[[Callable[[fastdiff.Progress], object]], Tensor]) -> None:
        try:
            self._news.put(self._frame(work(self._follow), 1, 1, done=True))
            self._news.put(None)
        except torch.OutOfMemoryError:
            self._news.put(FastdiffError("the device has no memory for so many images; ask for fewer"))
        except BaseException as error:
            self._news.put(None if self.stopped else error)

    def _follow(self, now: fastdiff.Progress) -> None:
        if self.stopped:
            raise InterruptedError
        if now.step % -(-now.steps // PREVIEWS) == 0 and now.step < now.steps:
            self._news.put(self._frame(now.x0, now.step, now.steps))

    def _frame(self, images: Tensor, step: int, steps: int, done: bool = False) -> Frame:
        pixels = self._finish(fastdiff.to_uint8(images).cpu().numpy())
        # "dpm_adaptive" shows one sample after the other.
        captions = self._captions if len(self._captions) == len(pixels) else [""] * len(pixels)
        return Frame(pixels, captions, step, steps, time.perf_counter() - self._start, done)
