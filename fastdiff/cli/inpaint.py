"""``fastdiff inpaint``: fill in the part of an image that a mask hides."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import fastdiff
from fastdiff.choices import SamplerName
from fastdiff.cli.options import (
    BatchSize,
    Checkpoint,
    Count,
    Device,
    Out,
    Preset,
    Progress,
    Steps,
    Weights,
)
from fastdiff.cli.shared import check_folder, class_number, load_denoiser
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
    """An image of the model's size, or an .npz with several (arr_0 or images, NHWC uint8)."""
    mask: Annotated[Positional[Path], arg(metavar="MASK")]
    """A black and white image of the same size: white is unknown and filled in, black is known."""
    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    n: Count = 7
    """Number of completions of each image."""
    sampler: SamplerName = "ancestral"
    """Sampling method; "ancestral" adds noise at each step, which blends known and filled parts."""
    steps: Steps = "50"
    repeats: int | None = None
    """Times each step is made; more fit the known pixels better. Default: 5, or 1 for samplers without noise."""
    class_name: Annotated[str | None, arg(name="class")] = None
    """Class of the image, by name or number. Default: no class, for models that were trained to do without."""
    seed: int = 0
    """Random seed."""
    batch_size: BatchSize = 16
    out: Out = Path("out")
    device: Device = "auto"
    progress: Progress = True

    def run(self) -> int:
        import numpy as np
        import torch

        from fastdiff.bench.machine import device_name

        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        model = load_denoiser(self.checkpoint, self.preset, self.device, weights=self.weights)
        images = read_images(self.image, model.config.image_size, model.config.in_channels)
        mask = read_mask(self.mask, model.config.image_size)
        options: dict[str, Any] = {
            "classes": self._class(model),
            "seed": self.seed,
            "repeats": self.repeats,
            "progress": self.progress,
        }
        known = torch.from_numpy(images).movedim(-1, 1) / 127.5 - 1
        sampling = {"sampler": self.sampler, "steps": self.steps, "batch_size": self.batch_size}
        fastdiff.Sampler(model, **sampling)  # checks them, before anything is made
        check_folder(self.out, FILES)
        start = time.perf_counter()
        try:
            filled = fastdiff.inpaint(model, known, torch.from_numpy(mask), self.n, **sampling, **options)
        except torch.OutOfMemoryError:
            raise FastdiffError(
                f"{self.device} has no memory for {self.batch_size} images at a time; give a smaller --batch-size"
            ) from None
        seconds = time.perf_counter() - start
        # The known bytes themselves: on the way to [-1, 1] and back, truncation may take 1 off.
        completions = fastdiff.to_uint8(filled).cpu().numpy()
        completions = np.where(mask[..., None], completions, np.repeat(images, self.n, 0))
        self._write(images, mask, completions)
        print(f"device     {device_name(self.device)}")
        print(
            f"filled     {len(images)} x {self.n} images in {seconds:.1f} s; {mask.mean():.0%} of the pixels unknown"
        )
        print(f"wrote      {', '.join(str(self.out / name) for name in FILES)}")
        return 0

    def _class(self, model: Any) -> int | None:
        num_classes = model.config.num_classes
        if self.class_name is None:
            if num_classes is not None and model.null_class is None:
                raise FastdiffError(
                    f"{self.checkpoint} is class-conditional; give --class, 0 to {num_classes - 1}"
                )
            return None
        if num_classes is None:
            raise FastdiffError(f"{self.checkpoint} is not class-conditional; leave out --class")
        return class_number(self.class_name, num_classes, list(model.class_names))

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


def read_images(path: Path, size: int, channels: int) -> np.ndarray:
    """[M,size,size,channels] uint8, from a picture (made grey or RGB as the model is) or an .npz.

    Raises:
        FastdiffError: a missing or broken file, another size or, in an .npz, other channels.
    """
    import numpy as np

    from fastdiff.data.readers import open_image, read_npz

    if not path.is_file():
        raise FastdiffError(f"no image at {path}; give a picture or an .npz")
    if path.suffix == ".npz":
        images = read_npz(path).images
        images = images[..., None] if images.ndim == 3 else images
    else:
        picture = open_image(path).convert({1: "L", 3: "RGB"}[channels])
        images = np.array(picture).reshape(1, picture.height, picture.width, channels)
    if images.shape[1:] != (size, size, channels):
        height, width, found = images.shape[1:]
        raise FastdiffError(
            f"{path} is {width} x {height} pixels with {found} channel{'s' * (found > 1)}; "
            f"the model's images are {size} x {size} with {channels}"
        )
    return images


def read_mask(path: Path, size: int) -> np.ndarray:
    """[size,size] bool, True where the picture is white.

    Raises:
        FastdiffError: a missing or broken file, another size, other colours than black and white.
    """
    import numpy as np

    from fastdiff.data.readers import open_image

    if not path.is_file():
        raise FastdiffError(f"no mask at {path}; give a black and white picture, white where to fill")
    mask = np.asarray(open_image(path).convert("L"))
    if mask.shape != (size, size):
        raise FastdiffError(
            f"the mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels; the model's images are {size} x {size}"
        )
    grey = mask[(mask != 0) & (mask != 255)]
    if len(grey):
        raise FastdiffError(
            f"the mask {path} must be black (0, known) and white (255, to fill) only, got {grey[0]} among them"
        )
    return mask == 255
