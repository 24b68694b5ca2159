"""``fastdiff inpaint``: fill in the part of an image that a mask hides."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import fastdiff
from fastdiff.choices import INPAINTING, usual_sampling
from fastdiff.cli.options import (
    BatchSize,
    Checkpoint,
    ClassName,
    Count,
    Device,
    FitTo,
    InpaintSampler,
    InpaintSteps,
    Out,
    Preset,
    Progress,
    Weights,
)
from fastdiff.cli.shared import check_folder, enough_memory, free_weights, load_denoiser, one_class
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

FILES = ("inpaint.png", "inpaint.npz")
UNKNOWN_COLOUR = (224, 122, 62)  # of hidden pixels in the picture


@dataclass(frozen=True)
class Inpaint:
    """Inpainting: fill in an image where MASK is white.

    Writes OUT/inpaint.png (the masked image and its N completions in a row) and OUT/inpaint.npz (arr_0: completions,
    NHWC uint8, image by image; image; mask). Known pixels (black in MASK) stay as they are, to the bit.
    """

    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """An image, or an .npz with several (arr_0 or images, NHWC uint8)."""
    mask: Annotated[Positional[Path], arg(metavar="MASK")]
    """A black and white image of the same size: white is unknown and filled in, black is known."""
    fit: FitTo = None
    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    n: Count = 7
    """Number of completions of each image."""
    sampler: InpaintSampler = None
    steps: InpaintSteps = None
    repeats: int | None = None
    """Times each step is repeated; more fit the known pixels better. Default: 5, or 1 for samplers without noise."""
    class_name: ClassName = None
    seed: int = 0
    """Random seed."""
    batch_size: BatchSize = 16
    out: Out = Path("out")
    device: Device = "auto"
    progress: Progress = True

    def run(self) -> int:
        import torch

        from fastdiff.bench.machine import device_name
        from fastdiff.cli.pictures import fitted, read_images, read_mask
        from fastdiff.sampling.api import from_uint8

        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        model = load_denoiser(self.checkpoint, self.preset, self.device, weights=self.weights)
        size, channels = model.config.image_size, model.config.in_channels
        images = read_images(self.image, channels)
        mask = read_mask(self.mask, size, self.fit, images.shape[1:3])
        images = fitted(self.image, images, size, channels, self.fit)
        options: dict[str, Any] = {
            "classes": one_class(model, self.checkpoint, self.class_name),
            "seed": self.seed,
            "repeats": self.repeats,
            "progress": self.progress,
        }
        known = from_uint8(torch.from_numpy(images))
        sampler, steps = usual_sampling(self.sampler, self.steps, model.diffusion.is_consistent, INPAINTING)
        sampling: dict[str, Any] = {"sampler": sampler, "steps": steps, "batch_size": self.batch_size}
        fastdiff.Sampler(model, **sampling)  # checks them, before anything is made
        check_folder(self.out, FILES)
        free_weights(model)
        start = time.perf_counter()
        with enough_memory(self.device, self.batch_size):
            filled = fastdiff.inpaint(model, known, torch.from_numpy(mask), self.n, **sampling, **options)
        seconds = time.perf_counter() - start
        completions = with_known_pixels(fastdiff.to_uint8(filled).cpu().numpy(), images, mask)
        self._write(images, mask, completions)
        print(f"device     {device_name(self.device)}")
        print(
            f"filled     {len(images)} x {self.n} images in {seconds:.1f} s; {mask.mean():.0%} of the pixels unknown"
        )
        print(f"wrote      {', '.join(str(self.out / name) for name in FILES)}")
        return 0

    def _write(self, images: np.ndarray, mask: np.ndarray, completions: np.ndarray) -> None:
        import numpy as np

        from fastdiff.images import grid

        rows = []
        for i, image in enumerate(images):
            shown = np.broadcast_to(image, (*mask.shape, 3)).copy()
            shown[mask] = UNKNOWN_COLOUR
            filled = completions[i * self.n : (i + 1) * self.n]
            rows += [shown[None], np.broadcast_to(filled, (self.n, *mask.shape, 3))]
        captions = ["known", *(str(k + 1) for k in range(self.n))] * len(images)
        with atomic_path(self.out / "inpaint.npz") as path, open(path, "wb") as file:
            np.savez(file, completions, image=images, mask=mask)
        with atomic_path(self.out / "inpaint.png") as path:
            grid(np.concatenate(rows), captions, columns=self.n + 1).save(path, format="PNG")


def with_known_pixels(completions: np.ndarray, images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Completions [M n,H,W,C] uint8 of images [M,H,W,C] with the known bytes themselves, where mask [H,W] is False.

    On the way to [-1, 1] and back, truncation may take 1 off.
    """
    import numpy as np

    return np.where(mask[..., None], completions, np.repeat(images, len(completions) // len(images), 0))
