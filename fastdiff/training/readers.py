"""Reading images and labels from the formats in which data sets are published."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastdiff.errors import FastdiffError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"}
_UINT8 = 0x08  # type code in the IDX header
_CHUNK = 1 << 24
_NPZ_NAMES = (("images", "labels"), ("arr_0", "arr_1"))


class RawData(NamedTuple):
    """Images as they are stored, one after the other, each [H,W] or [H,W,C] uint8 or a PIL image."""

    count: int
    images: Iterable[np.ndarray | Image.Image]
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()


def read(path: Path, labels: Path | None = None) -> RawData:
    """Images and labels of a folder, an IDX file or an .npz, told apart by the name.

    Raises:
        FastdiffError: a missing or broken file, no images, labels that do not fit.
    """
    if not path.exists():
        raise FastdiffError(f"no data at {path}; give a folder of images, an IDX file or an .npz")
    if labels is not None and (path.is_dir() or path.suffix == ".npz"):
        raise FastdiffError(f"labels go with an IDX images file; {path} carries its own")
    if path.is_dir():
        return _read_folder(path)
    return _read_npz(path) if path.suffix == ".npz" else _read_idx_pair(path, labels)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: two zero bytes, type, rank, sizes (big endian), data.

    Raises:
        FastdiffError: another kind of file, or one that is cut short.
    """
    try:
        with open(path, "rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UINT8 or head[3] == 0:
                raise FastdiffError(f"{path} is not an IDX file of unsigned bytes")
            rank = head[3]
            sizes = file.read(4 * rank)
            shape = struct.unpack(f">{rank}I", sizes) if len(sizes) == 4 * rank else (1,)
            data = _read_at_most(file, math.prod(shape))
    except (OSError, EOFError, zlib.error) as error:
        raise FastdiffError(f"cannot read {path}: {error}") from None
    if len(data) != math.prod(shape):
        raise FastdiffError(f"{path} is cut short: its header promises {list(shape)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_at_most(file: io.BufferedIOBase, size: int) -> bytes:
    """Up to ``size`` bytes, in pieces: a header that lies about its size does not allocate it."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, _CHUNK))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _read_idx_pair(path: Path, labels_path: Path | None) -> RawData:
    images = read_idx(path)
    if images.ndim != 3 or not len(images):
        raise FastdiffError(f"{path} holds no images: expected IDX data [N,H,W], got {list(images.shape)}")
    if labels_path is None:
        beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        labels_path = beside if beside != path and beside.exists() else None
    return RawData(len(images), images, None if labels_path is None else read_idx(labels_path))


def _read_npz(path: Path) -> RawData:
    if not zipfile.is_zipfile(path):
        raise FastdiffError(f"{path} is not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise FastdiffError(f"cannot read {path}: {error}") from None
    names = next((pair for pair in _NPZ_NAMES if pair[0] in arrays), None)
    if names is None:
        raise FastdiffError(f"{path} holds no array named 'images' or 'arr_0', only {sorted(arrays)}")
    images = arrays[names[0]]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise FastdiffError(
            f"{path}: images must be uint8 [N,H,W] or [N,H,W,C] with N >= 1, "
            f"got {images.dtype} {list(images.shape)}"
        )
    return RawData(len(images), images, arrays.get(names[1]))


def _read_folder(path: Path) -> RawData:
    """Class = name of the subfolder of ``path``; no labels if the images lie in ``path`` itself."""
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not files:
        raise FastdiffError(f"no images under {path}; looked for {', '.join(sorted(EXTENSIONS))}")
    classes = [p.relative_to(path).parts[0] if p.parent != path else None for p in files]
    names = sorted({name for name in classes if name is not None})
    if not names:
        return RawData(len(files), _opened(files), None)
    if None in classes:
        stray = files[classes.index(None)]
        raise FastdiffError(f"{stray} lies beside the class folders {', '.join(names[:5])}; move it into one")
    numbers = {name: i for i, name in enumerate(names)}
    labels = np.array([numbers[name] for name in classes if name is not None])
    return RawData(len(files), _opened(files), labels, tuple(names))


def _opened(files: Sequence[Path]) -> Iterable[Image.Image]:
    return (open_image(file) for file in files)


def open_image(file: Path) -> Image.Image:
    """A picture with 8 bits a channel, in memory.

    Raises:
        FastdiffError: a file that cannot be read, or has more bits.
    """
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FastdiffError(f"cannot read the image {file}: {error}") from None
    if image.mode.startswith(("I", "F")):
        raise FastdiffError(f"{file} has more than 8 bits a channel; convert it to 8 bits")
    return image
