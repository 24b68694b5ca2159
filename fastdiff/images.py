"""Pictures of samples: a captioned grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdiff.errors import FastdiffError
from fastdiff.scalars import plain

_BACKGROUND, _INK, _GAP = "white", "#202020", 6


def grid(
    images: np.ndarray, captions: Sequence[str] | None = None, *, columns: int | None = None, tile: int = 96
) -> Image.Image:
    """A grid of images, row by row, each with its caption below.

    Args:
        images: [N, H, W, C] uint8, C = 1 or 3.
        captions: N strings, or None for bare images. Long ones are set smaller, then cut, to fit the tile's width.
        columns: images in a row; the square root of N, rounded up, if None.
        tile: smallest width of a tile in pixels; smaller images are enlarged by a whole factor.

    Raises:
        FastdiffError: nothing to draw, another shape or dtype, another number of captions.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or not len(images):
        raise FastdiffError(
            f"grid: images must be uint8 [N, H, W, 1 or 3] with N >= 1, got {images.dtype} {list(images.shape)}"
        )
    if captions is not None and len(captions) != len(images):
        raise FastdiffError(f"grid: {len(captions)} captions for {len(images)} images")
    n, height, width, channels = images.shape
    columns, tile = plain(columns), plain(tile)
    columns = min(columns or int(np.ceil(np.sqrt(n))), n)
    zoom = max(1, round(tile / width))
    height, width = height * zoom, width * zoom
    caption_height = 16 if captions is not None else 0
    rows = -(-n // columns)
    cell = (width + _GAP, height + caption_height + _GAP)
    picture = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for i, image in enumerate(images):
        x, y = _GAP + (i % columns) * cell[0], _GAP + (i // columns) * cell[1]
        tile_image = Image.fromarray(image[..., 0] if channels == 1 else image)
        picture.paste(tile_image.resize((width, height), Image.Resampling.NEAREST), (x, y))
        if captions is not None:
            middle = (x + width / 2, y + height + caption_height / 2)
            text, font = _fitting(captions[i], width)
            draw.text(middle, text, fill=_INK, anchor="mm", font=font)
    return picture


def _fitting(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The text and the largest font in which it fits; at the smallest legible size it is cut instead."""
    for size in (13, 12, 11, 10, 9):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return text, font
    shown = len(text)
    while shown and font.getlength(text[:shown] + "…") > width:
        shown -= 1
    return text[:shown].rstrip() + "…", font
