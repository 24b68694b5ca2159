"""``fastdiff encode``: the noise from which a model makes given images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import fastdiff
from fastdiff.choices import INVERSION
from fastdiff.cli.options import (
    BatchSize,
    Checkpoint,
    ClassName,
    Device,
    FitTo,
    Out,
    Preset,
    Progress,
    Steps,
    Weights,
)
from fastdiff.cli.shared import check_folder, enough_memory, free_weights, load_denoiser, one_class
from fastdiff.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

FILES = ("encoded.png", "latents.npz")
SHOWN = 32  # images in the picture at most


@dataclass(frozen=True)
class Encode:
    """Encode images: find the noise from which the model makes them, by DDIM inversion.

    Writes OUT/latents.npz (latents: NCHW float32; images and reconstructions: NHWC uint8; rmse: the error of each
    image, in grey levels of 255) and OUT/encoded.png (images with their reconstructions).
    """

    images: Annotated[Positional[Path], arg(metavar="IMAGES")]
    """An image, or an .npz with several (arr_0 or images, NHWC uint8)."""
    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    fit: FitTo = None
    class_name: ClassName = None
    steps: Steps = str(INVERSION.steps)
    batch_size: BatchSize = 16
    out: Out = Path("out")
    device: Device = "auto"
    progress: Progress = True

    def run(self) -> int:
        import torch

        from fastdiff.bench.machine import device_name
        from fastdiff.cli.pictures import model_images
        from fastdiff.sampling.api import from_uint8

        model = load_denoiser(self.checkpoint, self.preset, self.device, weights=self.weights)
        pixels = model_images(self.images, model, self.fit)
        label = one_class(model, self.checkpoint, self.class_name)
        images = from_uint8(torch.from_numpy(pixels))
        options: dict[str, Any] = {
            "sampler": INVERSION.sampler,
            "steps": self.steps,
            "batch_size": self.batch_size,
        }
        sampler = fastdiff.Sampler(model, **options)
        check_folder(self.out, FILES)
        free_weights(model)
        with enough_memory(self.device, self.batch_size), sampler:
            latents = sampler.encode(images, classes=label, progress=self.progress).cpu()
            again = sampler(len(images), classes=label, noise=latents, progress=self.progress).cpu()
        rmse = (127.5 * (again - images)).square().mean(dim=(1, 2, 3)).sqrt().numpy()
        self._write(pixels, fastdiff.to_uint8(again).numpy(), latents.numpy(), rmse)
        print(f"device     {device_name(self.device)}")
        print(f"encoded    {len(images)} images in {self.steps} steps of {INVERSION.sampler}")
        print(
            f"error      {rmse.mean():.2f} grey levels of 255 (root mean square of an image; at most {rmse.max():.2f})"
        )
        print(f"wrote      {', '.join(str(self.out / name) for name in FILES)}")
        return 0

    def _write(self, images: np.ndarray, again: np.ndarray, latents: np.ndarray, rmse: np.ndarray) -> None:
        import numpy as np

        from fastdiff.images import grid

        with atomic_path(self.out / FILES[1]) as path, open(path, "wb") as file:
            np.savez(file, latents=latents, images=images, reconstructions=again, rmse=rmse)
        pairs = np.stack([images[:SHOWN], again[:SHOWN]], axis=1).reshape(-1, *images.shape[1:])
        captions = [text for error in rmse[:SHOWN] for text in ("image", f"error {error:.1f}")]
        with atomic_path(self.out / FILES[0]) as path:
            grid(pairs, captions, columns=8).save(path, format="PNG")
