"""Training images in memory, all of one size, and the batch that a step sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.training.config import Fit
from fastdiff.training.readers import RawData, read

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageData:
    """Images [N,C,H,W] uint8 and labels [N] int64 (or None), with the classes' names."""

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def load_data(
    path: Path,
    *,
    image_size: int,
    channels: int,
    num_classes: int | None,
    labels: Path | None = None,
    class_names: tuple[str, ...] = (),
    fit: Fit = "crop",
) -> ImageData:
    """Read images from a folder, an IDX file or an .npz and fit them to [N,channels,image_size,image_size].

    Args:
        num_classes: classes of the model; None leaves the labels out.
        labels: the labels file of IDX images, found by name if None.
        class_names: replace the data's own.
        fit: "crop" or "pad", see :func:`fit_image`.

    Raises:
        FastdiffError: whatever cannot be read, or labels that the model cannot take.
    """
    raw = read(path, labels)
    targets = None if num_classes is None else _labels(raw, path, num_classes)
    names = class_names or raw.class_names
    if targets is None:
        names = ()
    elif names and len(names) != num_classes:
        raise FastdiffError(
            f"{len(names)} class names for {num_classes} classes; give --num-classes {len(names)}"
        )
    images = np.empty((raw.count, image_size, image_size, channels), np.uint8)
    for i, image in enumerate(raw.images):
        images[i] = fit_image(image, image_size, channels, fit)
    return ImageData(torch.from_numpy(images).permute(0, 3, 1, 2), targets, names)


def _labels(raw: RawData, path: Path, num_classes: int) -> Tensor:
    if raw.labels is None:
        raise FastdiffError(
            f"the model has {num_classes} classes but {path} has no labels; give --num-classes 0"
        )
    if raw.labels.shape != (raw.count,) or raw.labels.dtype.kind not in "iu":
        raise FastdiffError(
            f"labels of {path} must be {raw.count} whole numbers, one per image, "
            f"got {raw.labels.dtype} {list(raw.labels.shape)}"
        )
    wrong = raw.labels[(raw.labels < 0) | (raw.labels >= num_classes)]
    if len(wrong):
        raise FastdiffError(
            f"label {wrong[0]} in {path} is out of range: the model's classes are 0 to {num_classes - 1}"
        )
    return torch.from_numpy(raw.labels.astype(np.int64))


def fit_image(image: np.ndarray | Image.Image, size: int, channels: int, fit: Fit = "crop") -> np.ndarray:
    """One image to [size,size,channels] uint8, grey or RGB; transparency is dropped.

    "crop" is ADM's: halve by box filters while the shorter side is at least twice ``size``, scale it
    bicubically to ``size``, cut the centre out. "pad" centres the image on black.

    Raises:
        FastdiffError: an image larger than ``size`` with "pad"; channels other than 1, 3 or 4.
    """
    picture = image if isinstance(image, Image.Image) else _from_array(image)
    picture = picture.convert(_MODES[channels])
    width, height = picture.size
    if fit == "crop":
        picture = _centre_crop(picture, size)
    elif max(width, height) > size:
        raise FastdiffError(f"cannot pad a {width}x{height} image to {size}x{size}; use --fit crop")
    else:
        padded = Image.new(picture.mode, (size, size))
        padded.paste(picture, ((size - width) // 2, (size - height) // 2))
        picture = padded
    return np.asarray(picture).reshape(size, size, channels)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise FastdiffError(f"images must have 1, 3 or 4 channels in the last place, got {list(array.shape)}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _centre_crop(picture: Image.Image, size: int) -> Image.Image:
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        scaled = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))
