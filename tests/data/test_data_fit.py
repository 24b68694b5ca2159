"""Images are fitted as ADM's code does it, held against a second writing of that in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data.fit import fit_image
from fastdiff.data.images import load_data
from fastdiff.interop.guided_diffusion import image_datasets

SIZE = 16
# (height, width): equal, smaller, up to twice, just twice, several halvings, odd sides on the way, long. None of them
# has a pixel just between two boxes, where the last digit of Pillow's floating point decides.
SHAPES = [(16, 16), (16, 23), (9, 12), (31, 31), (32, 40), (35, 67), (70, 134), (142, 206), (142, 527)]


def box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resample(
    pixels: np.ndarray, height: int, width: int, kernel: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Antialiased: the kernel is widened by the factor of reduction. Rounded to bytes after each direction."""
    for axis, n in ((1, width), (0, height)):
        scale = pixels.shape[axis] / n
        centres = (np.arange(n) + 0.5) * scale
        places = np.arange(pixels.shape[axis]) + 0.5
        weights = kernel((places - centres[:, None]) / max(scale, 1))
        weights /= weights.sum(1, keepdims=True)
        blended = np.moveaxis(np.tensordot(weights, pixels.astype(float), (1, axis)), 0, axis)
        pixels = np.floor(blended + 0.5).clip(0, 255).astype(np.uint8)
    return pixels


def adm_scaled(pixels: np.ndarray, size: int) -> np.ndarray:
    """Box halvings while the shorter side is at least twice the size, then one bicubic resize to it."""
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resample(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, box)
    scale = size / min(pixels.shape[:2])
    return resample(pixels, round(pixels.shape[0] * scale), round(pixels.shape[1] * scale), cubic)


def adm_centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    pixels = adm_scaled(pixels, size)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def picture(shape: tuple[int, int]) -> np.ndarray:
    """A smooth one with noise, so that a shift by a pixel or another kernel is seen."""
    y, x = np.mgrid[: shape[0], : shape[1]] / min(shape)
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)]
    noise = np.random.default_rng(0).normal(0, 12, (*shape, 3))
    return (127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def assert_alike(fitted: np.ndarray, expected: np.ndarray) -> None:
    """Pillow resizes with fixed-point weights: a rounding may fall to the other side, and no more."""
    difference = np.abs(fitted.astype(int) - expected.astype(int))
    assert fitted.dtype == np.uint8 and fitted.shape == expected.shape
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crop_is_adms(shape: tuple[int, int]) -> None:
    pixels = picture(shape)
    expected = adm_centre_crop(pixels, SIZE)
    assert_alike(fit_image(pixels, SIZE, 3), expected)
    assert_alike(image_datasets.center_crop_arr(Image.fromarray(pixels), SIZE), expected)


@pytest.mark.parametrize("seed", range(4))
def test_random_crop_is_guided_diffusions(seed: int) -> None:
    """A shorter side drawn from size to size / 0.8, then a place drawn for the square."""
    pixels = picture((94, 62))
    torch.manual_seed(seed)
    cropped = image_datasets.random_crop_arr(Image.fromarray(pixels), SIZE)
    torch.manual_seed(seed)
    scaled = adm_scaled(pixels, int(torch.randint(SIZE, 20 + 1, ())))
    top, left = (int(torch.randint(n - SIZE + 1, ())) for n in scaled.shape[:2])
    assert_alike(cropped, scaled[top : top + SIZE, left : left + SIZE])


def test_random_crops_are_a_function_of_seed_step_and_image(tmp_path: Path) -> None:
    """Also of images in memory; without a step they are the middle."""
    np.savez(tmp_path / "x.npz", images=np.stack([picture((40, 30))] * 3))
    options: dict[str, Any] = {"image_size": SIZE, "channels": 3, "num_classes": None}
    data = load_data(tmp_path / "x.npz", fit="random-crop", seed=5, **options)
    first, second, again = (data.fetch(torch.tensor(rows), 7) for rows in ([0, 1], [2, 0], [1, 0]))
    assert torch.equal(first[0], second[1]) and torch.equal(first, again.flip(0))
    others = [data.fetch(torch.tensor([0]), 8)[0], first[1]]
    others += [
        load_data(tmp_path / "x.npz", fit="random-crop", seed=6, **options).fetch(torch.tensor([0]), 7)[0]
    ]
    assert not any(torch.equal(first[0], other) for other in others)
    centred = load_data(tmp_path / "x.npz", **options)
    assert torch.equal(data.fetch(torch.arange(3)), centred.fetch(torch.arange(3)))


def test_random_crops_take_every_size_and_place() -> None:
    """A 20x20 picture whose pixels count is scaled to 16 .. 20; where to 20, the first pixel tells the place."""
    counting = (np.arange(400) % 256).astype(np.uint8).reshape(20, 20)
    rng = np.random.default_rng(0)
    crops = [fit_image(counting, SIZE, 1, "random-crop", rng)[..., 0] for _ in range(600)]
    unscaled = {
        (int(c[0, 0]) // 20, int(c[0, 0]) % 20) for c in crops if (np.diff(c[0].astype(int)) == 1).all()
    }
    assert unscaled == {(top, left) for top in range(5) for left in range(5)}
    assert any((crop == fit_image(counting, SIZE, 1)[..., 0]).all() for crop in crops)  # scaled to 16


def test_same_size_is_left_alone() -> None:
    pixels = picture((SIZE, SIZE))
    np.testing.assert_array_equal(fit_image(pixels, SIZE, 3), pixels)
    grey = pixels[..., 0]
    np.testing.assert_array_equal(fit_image(grey, SIZE, 1)[..., 0], grey)
    np.testing.assert_array_equal(fit_image(grey, SIZE, 3), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("shape", [(8, 8), (8, 13), (40, 33), (5, 7), (16, 100)])
def test_crop_leaves_no_rim(shape: tuple[int, int]) -> None:
    assert fit_image(np.full(shape, 255, np.uint8), 8, 1).min() == 255


def test_crop_scales_by_the_shorter_side() -> None:
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 100
    assert (fit_image(image, 8, 1) == 100).all()
    assert (fit_image(image.repeat(2, 0).repeat(2, 1), 8, 1) == 100).all()


def test_transparency_is_dropped() -> None:
    rgba = np.dstack([picture((8, 8)), np.arange(64, dtype=np.uint8).reshape(8, 8)])
    np.testing.assert_array_equal(fit_image(rgba, 8, 3), rgba[..., :3])
