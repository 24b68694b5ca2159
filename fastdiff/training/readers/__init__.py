"""Reading images and labels from the forms in which data sets are published."""

from __future__ import annotations

from pathlib import Path

from fastdiff.errors import FastdiffError
from fastdiff.training.readers.arrays import Arrays as Arrays
from fastdiff.training.readers.arrays import read_idx as read_idx
from fastdiff.training.readers.arrays import read_idx_pair
from fastdiff.training.readers.arrays import read_npz as read_npz
from fastdiff.training.readers.encoded import EncodedImages as EncodedImages
from fastdiff.training.readers.encoded import open_image as open_image
from fastdiff.training.readers.folder import read_folder
from fastdiff.training.readers.webdataset import find_shards, read_shards
from fastdiff.training.readers.zips import read_zip


def read(path: Path, labels: Path | None = None, *, progress: bool = False) -> Arrays | EncodedImages:
    """Images and labels of any kind in docs/data.md, told apart by the name.

    Raises:
        FastdiffError: a missing or broken file, no images, labels that do not fit.
    """
    kind = path.suffix.lower()
    shards = find_shards(path)
    if not shards and not path.exists():
        raise FastdiffError(
            f"no data at {path}; give a folder or .zip of images, .tar shards, an IDX file or an .npz"
        )
    if labels is not None and (shards or path.is_dir() or kind in (".npz", ".zip")):
        raise FastdiffError(f"labels go with an IDX images file; {path} carries its own")
    if shards:
        return read_shards(shards, progress=progress)
    if path.is_dir():
        return read_folder(path, progress=progress)
    if kind == ".zip":
        return read_zip(path)
    return read_npz(path) if kind == ".npz" else read_idx_pair(path, labels)
