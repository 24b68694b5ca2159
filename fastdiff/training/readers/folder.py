"""A folder of image files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastdiff.errors import FastdiffError
from fastdiff.training.readers.encoded import EXTENSIONS, EncodedImages, is_image, pack, unpack
from fastdiff.training.readers.labels import LISTING, labels_by_folder, labels_by_listing


@dataclass(frozen=True)
class Folder(EncodedImages):
    """Image files under ``root``."""

    root: Path
    names: np.ndarray  # [N] bytes, relative to root

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.root / unpack(self.names[index]))

    def data(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()


def read_folder(root: Path, *, progress: bool) -> Folder:
    """All images under ``root``; class = subfolder, unless a dataset.json lists the labels.

    Raises:
        FastdiffError: no images, or labels that do not fit.
    """
    names = _image_names(root, progress)
    if not names:
        raise FastdiffError(f"no images under {root}; looked for {', '.join(sorted(EXTENSIONS))}")
    listing = root / LISTING
    if listing.is_file():
        return Folder(labels_by_listing(listing.read_bytes(), names, str(listing)), (), root, pack(names))
    return Folder(*labels_by_folder(names, str(root)), root, pack(names))


def _image_names(root: Path, progress: bool) -> list[str]:
    """Names relative to ``root``, ordered folder by folder. Links to folders are followed."""
    found: list[str] = []
    with tqdm(desc=f"looking through {root}", unit="img", disable=not progress, delay=1, leave=False) as bar:
        for folder, _, files in os.walk(root, followlinks=True):
            inside = os.path.relpath(folder, root).replace(os.sep, "/")
            names = [name if inside == "." else f"{inside}/{name}" for name in files]
            images = [name for name in names if is_image(name)]
            found += images
            bar.update(len(images))
    return sorted(found, key=lambda name: name.split("/"))
