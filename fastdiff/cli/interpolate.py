"""``fastdiff interpolate``: images between two images, or between the images of two seeds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import fastdiff
from fastdiff.choices import INVERSION, usual_sampling
from fastdiff.cli.options import (
    BatchSize,
    Checkpoint,
    ClassName,
    Count,
    Device,
    FitTo,
    InversionSteps,
    Out,
    Preset,
    Progress,
    Weights,
)
from fastdiff.cli.shared import check_folder, enough_memory, free_weights, load_denoiser, one_class
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("interpolation.png", "interpolation.npz")


@dataclass(frozen=True)
class Interpolate:
    """Interpolate between images, or between the images of random seeds.

    Between each two of them a row of N images, both ends included: the images are encoded to noise by DDIM inversion,
    their noise is interpolated on the sphere and decoded. Writes OUT/interpolation.png (a row for each two) and
    OUT/interpolation.npz (arr_0: images, NHWC uint8, row by row).
    """

    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE")] = ()
    """Two or more images to interpolate between. Default: none, the images of SEEDS."""
    seeds: tuple[int, ...] = (0, 1)
    """Two or more random seeds, in place of images; each is that of fastdiff sample --n 1."""
    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    n: Count = 8
    """Number of images in a row, both ends included."""
    fit: FitTo = None
    class_name: ClassName = None
    steps: InversionSteps = None
    batch_size: BatchSize = 16
    out: Out = Path("out")
    device: Device = "auto"
    progress: Progress = True

    def run(self) -> int:
        import numpy as np
        import torch

        from fastdiff.bench.machine import device_name
        from fastdiff.images import grid

        model = load_denoiser(self.checkpoint, self.preset, self.device, weights=self.weights)
        ends = self._ends(model)
        if len(ends) < 2 or self.n < 2:
            what = "images" if self.images else "seeds"
            raise FastdiffError(
                f"give at least two {what} and --n 2, got {len(ends)} {what} and n = {self.n}"
            )
        sampler, steps = usual_sampling(None, self.steps, model.diffusion.is_consistent, INVERSION)
        options: dict[str, Any] = {"sampler": sampler, "steps": steps, "batch_size": self.batch_size}
        fastdiff.Sampler(model, **options)  # checks them, before anything is made
        label = one_class(model, self.checkpoint, self.class_name)
        check_folder(self.out, FILES)
        free_weights(model)
        with enough_memory(self.device, self.batch_size):
            rows = [
                fastdiff.interpolate(model, a, b, self.n, classes=label, progress=self.progress, **options)
                for a, b in pairwise(ends)
            ]
        pixels = fastdiff.to_uint8(torch.cat(rows)).cpu().numpy()
        with atomic_path(self.out / FILES[1]) as path, open(path, "wb") as file:
            np.savez(file, pixels)
        with atomic_path(self.out / FILES[0]) as path:
            captions = [f"{k / (self.n - 1):.2f}" for k in range(self.n)] * len(rows)
            grid(pixels, captions, columns=self.n).save(path, format="PNG")
        print(f"device     {device_name(self.device)}")
        print(f"made       {len(rows)} x {self.n} images")
        print(f"wrote      {', '.join(str(self.out / name) for name in FILES)}")
        return 0

    def _ends(self, model: Any) -> list[Tensor] | list[int]:
        """Images [C,H,W] in [-1, 1], or seeds."""
        import torch

        from fastdiff.cli.pictures import model_images
        from fastdiff.sampling.api import from_uint8

        if not self.images:
            return list(self.seeds)
        read = [from_uint8(torch.from_numpy(model_images(p, model, self.fit))) for p in self.images]
        return list(torch.cat(read))
