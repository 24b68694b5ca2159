"""Pictures of samples: a captioned grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdiff.errors import FastdiffError

_BACKGROUND, _INK, _GAP = "white", "#202020", 6


def grid(
    images: np.ndarray, captions: Sequence[str] | None = None, *, columns: int | None = None, tile: int = 96
) -> Image.Image:
    """Lay images out row by row, each with its caption below.

    Args:
        images: [N, H, W, C] uint8, C = 1 or 3.
        captions: N strings, or None for bare images. Long ones are shrunk to the tile's width.
        columns: images in a row; the square root of N, rounded up, if None.
        tile: smallest width of a tile in pixels; smaller images are enlarged by a whole factor.

    Raises:
        FastdiffError: nothing to draw, or another shape or dtype.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or not len(images):
        raise FastdiffError(
            f"grid: images must be uint8 [N, H, W, 1 or 3] with N >= 1, got {images.dtype} {list(images.shape)}"
        )
    n, height, width, channels = images.shape
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
            draw.text(middle, captions[i], fill=_INK, anchor="mm", font=_fitting_font(captions[i], width))
    return picture


def _fitting_font(text: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for size in (13, 12, 11, 10, 9):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return font
    return ImageFont.load_default(8)
