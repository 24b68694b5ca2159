"""Training images, all of one size: in memory, or decoded on access."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff.choices import Fit
from fastdiff.data.fit import fit_image
from fastdiff.data.readers import ADVICE, Arrays, EncodedImages, read
from fastdiff.errors import FastdiffError
from fastdiff.scalars import plain

_MOST_CLASSES = 1 << 31


@dataclass(frozen=True)
class FittedImages:
    """N images that are decoded and fitted at each access."""

    source: Arrays | EncodedImages
    size: int
    channels: int
    fit: Fit = "crop"
    seed: int = 0  # of random crops

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Tensor, step: int | None) -> Tensor:
        """[n,channels,size,size] uint8."""
        images = np.empty((len(indices), self.size, self.size, self.channels), np.uint8)
        for row, index in zip(images, indices.tolist(), strict=True):
            try:
                image = self.source.image(index)
            except FastdiffError as error:
                raise FastdiffError(f"{error}; {ADVICE}") from None
            # The generator depends on step and image alone, not on the process or the row of the batch.
            rng = None if step is None else np.random.default_rng((self.seed, step, index))
            try:
                row[:] = fit_image(image, self.size, self.channels, self.fit, rng)
            except FastdiffError as error:
                raise FastdiffError(f"{self.source.name(index)}: {error}") from None
        return torch.from_numpy(images).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ImageData:
    """N images, labels [N] int64 (or None), and the classes' names."""

    images: Tensor | FittedImages  # [N,C,H,W] uint8
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """True if the images are a tensor in memory; otherwise each access decodes and fits them."""
        return isinstance(self.images, Tensor)

    def fetch(self, indices: Tensor, step: int | None = None) -> Tensor:
        """The images [n,C,H,W] uint8 at ``indices`` [n] int64.

        Args:
            step: training step; random crops are a function of seed, step and index. None: the centre is cropped.

        Raises:
            FastdiffError: an image that cannot be read or fitted, with its name.
        """
        return self.images[indices] if isinstance(self.images, Tensor) else self.images.fetch(indices, step)


def load_data(
    path: Path,
    *,
    image_size: int,
    channels: int,
    num_classes: int | None,
    labels: Path | None = None,
    class_names: tuple[str, ...] = (),
    fit: Fit = "crop",
    seed: int = 0,
    skip_broken: bool = False,
    progress: bool = False,
    raw: Arrays | EncodedImages | None = None,
) -> ImageData:
    """Open a data set whose images are fitted to [channels,image_size,image_size]; docs/data.md shows the kinds.

    IDX files and .npz are read whole; of folders and archives only the names are listed and the first image is decoded.

    Args:
        num_classes: number of classes of the model; None: labels are not read.
        labels: the labels file of IDX images; None: it is found by its name.
        class_names: names of the classes. Where the data have names of their own, labels are found by name; names of
            which the data have none replace theirs.
        fit: "crop", "random-crop" or "pad", see :func:`fastdiff.data.fit.fit_image`.
        seed: random seed of random crops.
        skip_broken: skip images of folders and archives that cannot be read, and log them, instead of raising.
        progress: show a bar if reading takes longer than a second.
        raw: the data at ``path``, if they were read before.

    Raises:
        FastdiffError: data that cannot be read, or labels that do not fit the model.
    """
    image_size, channels, num_classes, seed = map(plain, (image_size, channels, num_classes, seed))
    if raw is None:
        raw = read(path, labels, progress=progress, skip_broken=skip_broken)
    names = () if num_classes is None else class_names or raw.class_names
    if names and len(names) != num_classes:
        raise FastdiffError(
            f"{len(names)} class names for {num_classes} classes; give --num-classes {len(names)}"
        )
    targets = None if num_classes is None else _labels(raw, path, num_classes, names)
    if isinstance(raw, Arrays) and fit != "random-crop":
        return ImageData(_fitted(raw.images, image_size, channels, fit, progress), targets, names)
    data = ImageData(FittedImages(raw, image_size, channels, fit, seed), targets, names)
    data.fetch(torch.tensor([0]))  # an error that concerns all images is raised here, before training starts
    return data


def _fitted(images: np.ndarray, size: int, channels: int, fit: Fit, progress: bool) -> Tensor:
    """All of ``images`` [N,H,W] or [N,H,W,C], fitted: [N,channels,size,size]."""
    stored = images[..., None] if images.ndim == 3 else images
    if stored.shape[1:] == (size, size, channels):
        return torch.from_numpy(stored).permute(0, 3, 1, 2)
    fitted = np.empty((len(images), size, size, channels), np.uint8)
    bar = tqdm(images, "fitting images", unit="img", disable=not progress, delay=1, leave=False)
    for row, image in zip(fitted, bar, strict=True):
        row[:] = fit_image(image, size, channels, fit)
    return torch.from_numpy(fitted).permute(0, 3, 1, 2)


def whole_labels(raw: Arrays | EncodedImages, path: Path) -> np.ndarray:
    """Labels [N] int64 as they are stored, at least 0.

    Raises:
        FastdiffError: no labels, or others.
    """
    if raw.labels is None:
        raise FastdiffError(f"{path} has no labels")
    if raw.labels.shape != (len(raw),) or raw.labels.dtype.kind not in "iu":
        raise FastdiffError(
            f"labels of {path} must be {len(raw)} whole numbers, one per image, "
            f"got {raw.labels.dtype} {list(raw.labels.shape)}"
        )
    wrong = raw.labels[(raw.labels < 0) | (raw.labels >= _MOST_CLASSES)]
    if len(wrong):
        raise FastdiffError(f"label {wrong[0]} in {path} is out of range: classes are numbered from 0")
    return raw.labels.astype(np.int64)


def _labels(raw: Arrays | EncodedImages, path: Path, num_classes: int, names: tuple[str, ...]) -> Tensor:
    """Labels [N] int64, by the names of the classes if the data have them too."""
    if raw.labels is None:
        raise FastdiffError(
            f"the model has {num_classes} classes but {path} has no labels; give --num-classes 0"
        )
    labels = whole_labels(raw, path)
    if shared := set(names) & set(raw.class_names):
        others = [name for name in raw.class_names if name not in shared]
        if others:
            raise FastdiffError(
                f"{path} has the class {others[0]!r}, which is none of the model's: {', '.join(names)}"
            )
        labels = np.array([names.index(name) for name in raw.class_names])[labels]
    if len(labels) and labels.max() >= num_classes:
        raise FastdiffError(
            f"label {labels.max()} in {path} is out of range: the model's classes are 0 to {num_classes - 1}"
        )
    return torch.from_numpy(labels)
