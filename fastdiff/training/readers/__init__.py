"""Reading images and labels from the forms in which data sets are published."""

from __future__ import annotations

from pathlib import Path

from fastdiff.errors import FastdiffError
from fastdiff.training.readers.arrays import Arrays as Arrays
from fastdiff.training.readers.arrays import read_idx_pair
from fastdiff.training.readers.arrays import read_npz as read_npz
from fastdiff.training.readers.encoded import EncodedImages as EncodedImages
from fastdiff.training.readers.encoded import open_image as open_image
from fastdiff.training.readers.folder import read_folder


def read(path: Path, labels: Path | None = None, *, progress: bool = False) -> Arrays | EncodedImages:
    """Images and labels of an IDX file, an .npz or a folder of images, told apart by the name.

    Raises:
        FastdiffError: a missing or broken file, no images, labels that do not fit.
    """
    if not path.exists():
        raise FastdiffError(f"no data at {path}; give a folder of images, an IDX file or an .npz")
    if labels is not None and (path.is_dir() or path.suffix == ".npz"):
        raise FastdiffError(f"labels go with an IDX images file; {path} carries its own")
    if path.is_dir():
        return read_folder(path, progress=progress)
    return read_npz(path) if path.suffix == ".npz" else read_idx_pair(path, labels)
