"""Picture grids."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.errors import FastdiffError
from fastdiff.images import grid


def _images(n: int, size: int = 8, channels: int = 1) -> np.ndarray:
    """Image i is of one colour: i + 1."""
    return np.broadcast_to(
        np.arange(1, n + 1, dtype=np.uint8)[:, None, None, None], (n, size, size, channels)
    )


def test_images_lie_row_by_row_in_whole_enlargement() -> None:
    picture = np.asarray(grid(_images(5), columns=3, tile=16))
    assert picture.shape == (2 * (16 + 6) + 6, 3 * (16 + 6) + 6, 3)
    for i in range(5):
        y, x = 6 + i // 3 * 22, 6 + i % 3 * 22
        assert (picture[y : y + 16, x : x + 16] == i + 1).all()
    assert (picture[28:, 50:] == 255).all()  # the sixth place stays empty


def test_colours_are_kept() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    picture = np.asarray(grid(image, tile=8))
    assert (picture[6:14, 6:14] == image[0]).all()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (5, 3), (64, 8)])
def test_square_by_default(n: int, columns: int) -> None:
    assert grid(_images(n), tile=8).size[0] == columns * (8 + 6) + 6


def test_images_larger_than_a_tile_stay_as_they_are() -> None:
    assert grid(_images(1, size=200)).size == (212, 212)


def test_captions_stay_below_their_image() -> None:
    """However long: neither over an image, nor over a neighbour's caption."""
    images = np.zeros((2, 8, 8, 1), np.uint8)
    picture = np.asarray(grid(images, ["ok", "a caption much longer than its image is wide"], tile=96))
    assert (picture[6:102, 6:102] == 0).all() and (picture[6:102, 108:204] == 0).all()
    below = picture[102:].min(axis=(0, 2)) < 128  # columns with ink
    assert below[6:102].any() and below[108:204].any()
    assert not below[:6].any() and not below[102:108].any() and not below[204:].any()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 2), np.uint8),
        np.zeros((1, 8, 8, 1)),
        _images(1)[0],
    ],
    ids=["none", "two-channels", "float", "no-batch"],
)
def test_refuses_what_it_cannot_draw(images: np.ndarray) -> None:
    with pytest.raises(FastdiffError, match=r"grid: images must be uint8 \[N, H, W, 1 or 3\]"):
        grid(images)


def test_refuses_captions_of_another_number() -> None:
    with pytest.raises(FastdiffError, match="2 captions for 3 images"):
        grid(_images(3), ["a", "b"])
