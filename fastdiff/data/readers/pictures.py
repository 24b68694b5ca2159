"""Decoding one picture: the formats that are read, rotation by EXIF data, and what is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from fastdiff.errors import FastdiffError, reason

# Pillow's name of the format by extension. Nothing else is ever decoded, whatever a file is called: of the formats that
# Pillow knows, some start other programs (EPS: Ghostscript).
FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".bmp": "BMP", ".gif": "GIF"},
    **{".webp": "WEBP", ".ppm": "PPM", ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"},
}
EXTENSIONS = frozenset(FORMATS)
_GREY, _COLOURS = {"1", "L", "LA", "La"}, {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION = 0x0112  # the EXIF tag, and what undoes its values
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """A picture's properties in its file, before its pixels are decoded and perhaps rotated."""

    channels: int  # 1 (grey) or 3
    height: int
    width: int
    transparent: bool


def open_image(file: Path) -> Image.Image:
    """A picture with 8 bits a channel, in memory; see :func:`decode`.

    Raises:
        FastdiffError: a file that cannot be read, or has more bits.
    """
    return decode(file, str(file))


def decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    """The picture in ``file``, rotated as its EXIF data say; for an animation, its first picture.

    ``name`` is its name in error messages.

    Raises:
        FastdiffError: no picture of a format in FORMATS, a broken one, or one with more than 8 bits a grey value.
    """
    image = _opened(file, name)
    try:
        with image:
            image.load()
    except Exception as error:  # damaged bytes make decoders fail in any way
        raise FastdiffError(f"cannot read the image {name}: {reason(error)}") from None
    turn = _turn(image)  # only now, because a PNG may have them after its pixels
    return image if turn is None else image.transpose(turn)


def read_header(file: io.BytesIO, name: str) -> Header:
    """Channels and size of a picture that :func:`decode` would accept, from its header alone.

    Raises:
        FastdiffError: as :func:`decode`, except for broken pixels.
    """
    with _opened(file, name) as image:
        transparent = image.mode in _TRANSPARENT or "transparency" in image.info
        return Header(1 if is_grey(image.mode) else 3, image.height, image.width, transparent)


def _opened(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=known_formats())
    except UnidentifiedImageError:
        formats = ", ".join(dict.fromkeys(FORMATS.values()))
        raise FastdiffError(
            f"cannot read the image {name}: it is not a picture of a format that is read ({formats})"
        ) from None
    except Exception as error:
        raise FastdiffError(f"cannot read the image {name}: {reason(error)}") from None
    if image.mode.startswith(("I", "F")):
        image.close()
        raise FastdiffError(f"{name} has more than 8 bits a channel; convert it to 8 bits")
    if image.mode not in _GREY | _COLOURS:
        image.close()
        raise FastdiffError(f"{name} has colours that are not read ({image.mode}); convert it to RGB")
    return image


def known_formats() -> tuple[str, ...]:
    """The formats for which this Pillow has a decoder; AVIF is in newer ones only."""
    wanted = tuple(dict.fromkeys(FORMATS.values()))
    if any(name not in Image.OPEN for name in wanted):
        Image.init()
    return tuple(name for name in wanted if name in Image.OPEN)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Rotate by the EXIF data; Pillow's exif_transpose would also rewrite the EXIF data and fail if they are broken."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF data that are broken turn nothing, as in any viewer
        return None


def is_image(name: str) -> bool:
    """True if a file is an image by its extension, and not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)


def is_grey(mode: str) -> bool:
    """True if pictures of this mode of Pillow's have no colours."""
    return mode in _GREY


def is_hidden(name: str) -> bool:
    """True if a part of the name starts with a dot, or is macOS' folder of such files."""
    return any(part[:1] == "." and part != "." or part == "__MACOSX" for part in name.split("/"))
