"""Reading images and labels from the file formats of published data sets."""

from __future__ import annotations

from pathlib import Path

from fastdiff.data.readers.arrays import Arrays as Arrays
from fastdiff.data.readers.arrays import read_idx as read_idx
from fastdiff.data.readers.arrays import read_idx_pair
from fastdiff.data.readers.arrays import read_npz as read_npz
from fastdiff.data.readers.encoded import EncodedImages as EncodedImages
from fastdiff.data.readers.folder import Folder as Folder
from fastdiff.data.readers.folder import read_folder
from fastdiff.data.readers.huggingface import is_huggingface, read_huggingface
from fastdiff.data.readers.left_out import ADVICE as ADVICE
from fastdiff.data.readers.left_out import LeftOut as LeftOut
from fastdiff.data.readers.pictures import Header as Header
from fastdiff.data.readers.pictures import is_grey as is_grey
from fastdiff.data.readers.pictures import open_image as open_image
from fastdiff.data.readers.webdataset import find_shards, read_shards
from fastdiff.data.readers.zips import read_zip
from fastdiff.errors import FastdiffError


def read(
    path: Path, labels: Path | None = None, *, progress: bool = False, skip_broken: bool = False
) -> Arrays | EncodedImages:
    """Images and labels from any format in docs/data.md, which is recognised by the name. Skipped files are logged.

    Args:
        skip_broken: check every image of folders and archives, and skip those that cannot be read, instead of raising.

    Raises:
        FastdiffError: a missing or broken file, no images, labels that do not fit.
    """
    left_out = LeftOut(skip_broken)
    images = find_images(path, labels, left_out, progress=progress)
    if skip_broken and not isinstance(images, Arrays):
        images = images.without_broken(left_out, progress=progress)
    left_out.report(str(path))
    if not len(images):
        raise FastdiffError(f"no image in {path} can be read")
    return images


def find_images(
    path: Path, labels: Path | None, left_out: LeftOut, *, progress: bool = False
) -> Arrays | EncodedImages:
    """As :func:`read`, but no image is decoded, and what is skipped is in ``left_out`` alone."""
    if is_huggingface(path):
        return read_huggingface(path, None if labels is None else str(labels), progress=progress)
    kind = path.suffix.lower()
    shards = find_shards(path)
    if not shards and not path.is_file() and not path.is_dir():
        problem = ", which is a FIFO, a socket or a device" if path.exists() else ""
        raise FastdiffError(
            f"no data at {path}{problem}; give a folder or .zip of images, .tar shards, an IDX file, "
            "an .npz, parquet, or hf:NAME for a data set of Hugging Face"
        )
    if labels is not None and (shards or path.is_dir() or kind in (".npz", ".zip")):
        raise FastdiffError(f"labels go with an IDX images file; {path} carries its own")
    if shards:
        return read_shards(shards, left_out, progress=progress)
    if path.is_dir():
        return read_folder(path, left_out, progress=progress)
    if kind == ".zip":
        return read_zip(path, left_out)
    return read_npz(path) if kind == ".npz" else read_idx_pair(path, labels)
