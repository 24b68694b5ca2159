"""Images that stay in their files until they are accessed."""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastdiff.data.readers.left_out import LeftOut
from fastdiff.data.readers.pictures import Header, decode, read_header
from fastdiff.errors import FastdiffError, reason


@dataclass(frozen=True)
class EncodedImages(ABC):
    """N pictures in files. Only their locations are kept in memory, and no file is kept open.

    Therefore a source can be copied to worker processes, by fork or by pickle.
    """

    labels: np.ndarray | None  # as they are stored, one an image
    class_names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The file (and member) of a picture, for errors."""

    @abstractmethod
    def data(self, index: int) -> bytes:
        """The encoded picture. Raises OSError, ValueError or zlib.error where a file has changed or is broken."""

    def image(self, index: int) -> Image.Image:
        """The picture ``index``, decoded.

        Raises:
            FastdiffError: it cannot be read, or has more than 8 bits a grey value.
        """
        return decode(self._file(index), self.name(index))

    def header(self, index: int) -> Header:
        """Channels and size of the picture ``index``, from its header.

        Raises:
            FastdiffError: it cannot be read.
        """
        return read_header(self._file(index), self.name(index))

    def without_broken(self, left_out: LeftOut, *, progress: bool) -> EncodedImages:
        """The images that can be decoded; every image is decoded to find out."""
        good = []
        bar = tqdm(range(len(self)), "trying images", unit="img", disable=not progress, delay=1, leave=False)
        for index in bar:
            try:
                self.image(index)
            except FastdiffError as error:
                left_out.refuse(str(error))
            else:
                good.append(index)
        arrays = {
            f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return replace(self, **{name: value[good] for name, value in arrays.items()})

    def _file(self, index: int) -> io.BytesIO:
        try:
            return io.BytesIO(self.data(index))
        except (OSError, ValueError, zlib.error) as error:
            raise FastdiffError(f"cannot read the image {self.name(index)}: {reason(error)}") from None


def pack(names: Sequence[str]) -> np.ndarray:
    """File names as one array [N] of bytes.

    A million Python strings cost more, and their reference counts make every forked worker copy them.
    """
    return np.array([name.encode("utf-8", "surrogateescape") for name in names])


def unpack(name: bytes) -> str:
    """One of :func:`pack`'s names."""
    return name.decode("utf-8", "surrogateescape")
