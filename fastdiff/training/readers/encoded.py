"""Images that stay in their files until they are asked for, and how one of them is decoded."""

from __future__ import annotations

import io
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastdiff.errors import FastdiffError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"}
# What Pillow's decoders let through when the bytes are broken.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error)


@dataclass(frozen=True)
class EncodedImages(ABC):
    """N pictures in files. Only where they lie is held in memory, and no file is kept open.

    So a source may be copied to worker processes, by fork or by pickle.
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
            FastdiffError: it cannot be read, or has more than 8 bits a channel.
        """
        name = self.name(index)
        try:
            data = self.data(index)
        except (OSError, ValueError, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FastdiffError(f"cannot read the image {name}: {reason}") from None
        return decode(io.BytesIO(data), name)


def open_image(file: Path) -> Image.Image:
    """A picture with 8 bits a channel, in memory.

    Raises:
        FastdiffError: a file that cannot be read, or has more bits.
    """
    return decode(file, str(file))


def decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    """The picture in ``file``, which errors call ``name``; of an animation the first one.

    Raises:
        FastdiffError: not a picture, a broken one, or one with more than 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            image.load()
    except UnidentifiedImageError:
        raise FastdiffError(f"cannot read the image {name}: it is not a picture") from None
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise FastdiffError(f"cannot read the image {name}: {error}") from None
    if image.mode.startswith(("I", "F")):
        raise FastdiffError(f"{name} has more than 8 bits a channel; convert it to 8 bits")
    return image


def is_image(name: str) -> bool:
    """Whether a file counts: by its extension, and it is not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a part of the name starts with a dot, or is macOS' folder of such files."""
    return any(part[:1] == "." and part != "." or part == "__MACOSX" for part in name.split("/"))


def pack(names: Sequence[str]) -> np.ndarray:
    """File names as one array [N] of bytes.

    A million Python strings cost more, and their reference counts make every forked worker copy them.
    """
    return np.array([name.encode("utf-8", "surrogateescape") for name in names])


def unpack(name: bytes) -> str:
    """One of :func:`pack`'s names."""
    return name.decode("utf-8", "surrogateescape")
