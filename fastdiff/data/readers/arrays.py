"""IDX files and .npz files: arrays that are read whole."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdiff.errors import FastdiffError, reason

_UINT8 = 0x08  # type code in the IDX header
_MOST_SIZES = 4
_CHUNK = 1 << 24
_NPZ_NAMES = (("images", "labels"), ("arr_0", "arr_1"))


@dataclass(frozen=True)
class Arrays:
    """Images [N,H,W] or [N,H,W,C] uint8 as they are stored, and labels, one an image."""

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Name of an image in error messages."""
        return f"image number {index}"

    def image(self, index: int) -> np.ndarray:
        """[H,W] or [H,W,C] uint8."""
        return self.images[index]


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not: two zero bytes, type, rank, sizes (big endian), data.

    Raises:
        FastdiffError: another kind of file, or one whose size is not what its header promises.
    """
    try:
        with open(path, "rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UINT8 or not 1 <= head[3] <= _MOST_SIZES:
                raise FastdiffError(f"{path} is not an IDX file of unsigned bytes")
            rank = head[3]
            sizes = file.read(4 * rank)
            shape = struct.unpack(f">{rank}I", sizes) if len(sizes) == 4 * rank else (1,)
            data = _read_at_most(file, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise FastdiffError(f"cannot read {path}: {reason(error)}") from None
    if len(data) != math.prod(shape):
        wrong = "is cut short" if len(data) < math.prod(shape) else "is longer than it should be"
        raise FastdiffError(f"{path} {wrong}: its header promises {list(shape)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_at_most(file: io.BufferedIOBase, size: int) -> bytearray:
    """Read up to ``size`` bytes in pieces, so that a wrong size in a header does not allocate that much memory."""
    data = bytearray()
    while len(data) < size and (piece := file.read(min(size - len(data), _CHUNK))):
        data += piece
    return data


def read_idx_pair(path: Path, labels_path: Path | None) -> Arrays:
    """An IDX file of images, with its labels file, which is found beside it by name if None.

    Raises:
        FastdiffError: a broken file, or one that holds no images.
    """
    images = read_idx(path)
    if images.ndim != 3 or not images.size:
        raise FastdiffError(f"{path} holds no images: expected IDX data [N,H,W], got {list(images.shape)}")
    if labels_path is None:
        beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        labels_path = beside if beside != path and beside.exists() else None
    return Arrays(images, None if labels_path is None else read_idx(labels_path))


def read_npz(path: Path) -> Arrays:
    """An .npz with ``images`` and ``labels``, or ``arr_0`` and ``arr_1``; labels may be missing.

    Raises:
        FastdiffError: a broken file, or one that holds no images.
    """
    arrays = read_arrays(path)
    names = next((pair for pair in _NPZ_NAMES if pair[0] in arrays), None)
    if names is None:
        raise FastdiffError(f"{path} holds no array named 'images' or 'arr_0', only {sorted(arrays)}")
    images = arrays[names[0]]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise FastdiffError(
            f"{path}: images must be uint8 [N,H,W] or [N,H,W,C] with N >= 1, "
            f"got {images.dtype} {list(images.shape)}"
        )
    return Arrays(images, arrays.get(names[1]))


def read_arrays(path: Path, leave_out: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz, by name.

    Args:
        leave_out: names of arrays that are not read; an empty array is returned in their place.

    Raises:
        FastdiffError: a broken file, one with other contents than arrays, or one shorter than its headers say.
    """
    if not zipfile.is_zipfile(path):
        raise FastdiffError(f"{path} is not an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {n: np.empty(0) if n in leave_out else _array(archive, i) for n, i in names.items()}
    except Exception as error:  # damaged bytes make zipfile and NumPy fail in any way
        raise FastdiffError(f"cannot read {path}: {reason(error)}") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array. NumPy itself would allocate any size in the header, and check no checksum if it is too small."""
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member.filename} holds more than its header promises")
    return array
