"""Fitting an image of any size to the model's size: ADM's crops, or a black border."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from fastdiff.choices import Fit
from fastdiff.errors import FastdiffError
from fastdiff.scalars import plain

_MODES = {1: "L", 3: "RGB"}


def fit_image(
    image: np.ndarray | Image.Image,
    size: int,
    channels: int,
    fit: Fit = "crop",
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """One image fitted to [size,size,channels] uint8, grey or RGB; transparency is dropped.

    "crop" is ADM's: the middle square of :func:`scale_shorter_side`. "random-crop" is :func:`random_crop`, or "crop"
    where ``rng`` is None. "pad" centres the image on black.

    Raises:
        FastdiffError: a size below 1 or channels other than 1 and 3; an image larger than ``size`` with "pad"; an array
            whose last dimension is not 1, 3 or 4.
    """
    size, channels = plain(size), plain(channels)
    if channels not in _MODES or not isinstance(size, int) or size < 1:
        raise FastdiffError(f"size must be at least 1 and channels 1 or 3, got {size!r} and {channels!r}")
    picture = image if isinstance(image, Image.Image) else _from_array(image)
    picture = picture.convert(_MODES[channels])
    width, height = picture.size
    if fit == "random-crop" and rng is not None:
        picture = random_crop(picture, size, lambda low, high: int(rng.integers(low, high)))
    elif fit != "pad":
        picture = centre_crop(scale_shorter_side(picture, size), size)
    elif max(width, height) > size:
        raise FastdiffError(f"cannot pad a {width}x{height} image to {size}x{size}; use --fit crop")
    else:
        padded = Image.new(picture.mode, (size, size))
        padded.paste(picture, ((size - width) // 2, (size - height) // 2))
        picture = padded
    return np.asarray(picture).reshape(size, size, channels)


def scale_shorter_side(picture: Image.Image, size: int) -> Image.Image:
    """ADM's scaling: halved by box filters while the shorter side is at least 2 size, then bicubic to size."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale == 1:
        return picture
    scaled = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(scaled, Image.Resampling.BICUBIC)


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The central square, ``size`` wide; an odd remainder is cut at the right and the bottom."""
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def random_crop(
    picture: Image.Image,
    size: int,
    draw: Callable[[int, int], int],
    fractions: tuple[float, float] = (0.8, 1.0),
) -> Image.Image:
    """ADM's random crop for its classifiers: a square, ``size`` wide, of 0.8 to 1 of the shorter side.

    ``draw(low, high)`` returns one of low, ..., high - 1: first the length to which the shorter side is scaled, then
    the crop's top, then its left.
    """
    largest, smallest = (math.ceil(size / fraction) for fraction in fractions)
    picture = scale_shorter_side(picture, draw(smallest, largest + 1))
    top, left = (draw(0, side - size + 1) for side in (picture.height, picture.width))
    return picture.crop((left, top, left + size, top + size))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise FastdiffError(
            f"images must have 1, 3 or 4 channels in the last dimension, got {list(array.shape)}"
        )
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
