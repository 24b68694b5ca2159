"""The paper's data: swiss roll, binary heartbeat, dead leaves and bark made here, images from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import FastdiffError

HEARTBEAT_LENGTH, HEARTBEAT_PERIOD = 20, 5
RADII = (3.0, 16.0)  # of dead leaves, in pixels
SHEET = 512  # least side of the sheets of bark that images are cut from, in pixels
GREYS = 256  # of images on disk; uniform dequantisation spreads each over its bin


def swiss_roll(n: int, *, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Points on a spiral, [n, 2] float64, scaled to mean 0 and variance 1 of each coordinate.

    (u cos u, u sin u) with u uniform in [1.5 pi, 4.5 pi], the two rolled-up coordinates of the usual three.

    Args:
        noise: standard deviation of Gaussian noise, after scaling; 0 is the bare curve, whose density is that of
            the first step's noise.

    Raises:
        FastdiffError: n below 1, or negative noise.
    """
    _check_count(n)
    if not noise >= 0:
        raise FastdiffError(f"noise must be at least 0, got {noise}")
    generator = torch.Generator().manual_seed(seed)
    u = np.pi * (1.5 + 3 * torch.rand(n, generator=generator, dtype=torch.float64))
    grid = np.pi * (1.5 + 3 * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)
    mean, deviation = _spiral(grid).mean(0), _spiral(grid).std(0, correction=0)
    points = (_spiral(u) - mean) / deviation
    return points + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _spiral(u: Tensor) -> Tensor:
    return torch.stack([u * torch.cos(u), u * torch.sin(u)], 1)


def heartbeat_sequences() -> Tensor:
    """All five sequences [5, 20] float64: a one every fifth bin, the first in bin 0 .. 4 (section 3.1.2).

    A sequence's true log-likelihood is log2(1/5) = -2.3219 bits.
    """
    bins = torch.arange(HEARTBEAT_LENGTH)
    return torch.stack([(bins % HEARTBEAT_PERIOD == phase).double() for phase in range(HEARTBEAT_PERIOD)])


def heartbeat(n: int, *, seed: int = 0) -> Tensor:
    """n binary heartbeat sequences, [n, 20] float64 of 0 and 1, with uniform phases.

    Raises:
        FastdiffError: n below 1.
    """
    _check_count(n)
    generator = torch.Generator().manual_seed(seed)
    return heartbeat_sequences()[torch.randint(HEARTBEAT_PERIOD, (n,), generator=generator)]


def dead_leaves(
    n: int, *, size: int = 32, radii: tuple[float, float] = RADII, seed: int = 0, batch: int = 500
) -> Tensor:
    """Images of opaque discs that hide one another, [n, 1, size, size] uint8.

    Centres uniform, radii with density proportional to r^-3 between ``radii`` (scale invariance: Lee, Mumford &
    Huang 2001), greys uniform in 0 .. 255, edges sharp. Leaves are laid from the front to the back until every
    pixel is covered, which samples the stationary image exactly. The paper states neither radii nor size.

    Raises:
        FastdiffError: n or size below 1, or radii that are not increasing and positive.
    """
    _check_count(n)
    if size < 1 or not 0 < radii[0] < radii[1]:
        raise FastdiffError(f"size must be at least 1 and radii increasing, got size {size}, radii {radii}")
    rng = np.random.default_rng(seed)
    pieces = [_fall(min(batch, n - start), size, radii, rng) for start in range(0, n, batch)]
    return torch.from_numpy(np.concatenate(pieces))[:, None]


def _fall(n: int, size: int, radii: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    image = np.zeros((n, size, size), np.uint8)
    open_ = np.ones((n, size, size), bool)
    axis = np.arange(size, dtype=np.float32) + 0.5
    low, high = radii[0] ** -2, radii[1] ** -2
    todo = np.arange(n)
    while len(todo):
        count = len(todo)
        radius = (low + (high - low) * rng.random(count, np.float32)) ** -0.5  # inverse of the distribution
        margin = radii[1]  # leaves may lie outside and still reach in
        x, y = ((size + 2 * margin) * rng.random((2, count), np.float32) - margin)[..., None]
        inside = ((axis - y) ** 2)[:, :, None] + ((axis - x) ** 2)[:, None, :] <= (radius**2)[:, None, None]
        new = inside & open_[todo]
        touched = np.flatnonzero(new.any((1, 2)))
        rows = todo[touched]
        grey = rng.integers(0, GREYS, count, np.uint8)[:, None, None]
        image[rows] = np.where(new[touched], grey[touched], image[rows])
        open_[rows] &= ~new[touched]
        todo = todo[open_[todo].any((1, 2))]
    return image


def bark(n: int, *, size: int = 32, seed: int = 0) -> Tensor:
    """Bark-like textures, [n, 1, size, size] uint8: upright plates with fissures between, lit from the left.

    A stand-in for the paper's photographs of bark (section 3.3). The fissures lie where a smooth random field,
    stretched along the trunk, is near 0 (ridged noise); a second, finer field cracks the plates, a third makes them
    rough, a fourth lighter or darker, and the slope of the relief gives the shading. Images are tiles of large sheets.

    Raises:
        FastdiffError: n or size below 1.
    """
    _check_count(n)
    if size < 1:
        raise FastdiffError(f"size must be at least 1, got {size}")
    rng = np.random.default_rng(seed)
    across = -(-max(SHEET, size) // size)  # tiles to a side of a sheet
    tiles = [
        _sheet(across * size, rng).reshape(across, size, across, size) for _ in range(-(-n // across**2))
    ]
    return torch.from_numpy(np.concatenate(tiles).swapaxes(1, 2).reshape(-1, 1, size, size)[:n].copy())


def _sheet(side: int, rng: np.random.Generator) -> np.ndarray:
    """A periodic square of bark, [side,side] uint8."""

    def smooth(across: float, along: float) -> np.ndarray:
        """A Gaussian field of variance 1, smooth over so many columns and rows."""
        y, x = np.fft.fftfreq(side)[:, None] * along, np.fft.rfftfreq(side) * across
        waves = np.fft.rfft2(rng.standard_normal((side, side))) * np.exp(-2 * np.pi**2 * (x**2 + y**2))
        field = np.fft.irfft2(waves, s=(side, side))
        return field / field.std()

    def ridged(field: np.ndarray, width: float) -> np.ndarray:
        return 1 - np.exp(-np.abs(field) / width)

    relief = ridged(smooth(3.5, 12), 0.4) + 0.35 * ridged(smooth(1.5, 5), 0.5) + 0.08 * smooth(0.8, 2)
    shade = relief - np.roll(relief, 1, axis=1)
    grey = 10 + 100 * relief + 100 * shade + 14 * smooth(6, 20) + 3 * rng.standard_normal((side, side))
    return grey.round().clip(0, GREYS - 1).astype(np.uint8)


def read_textures(path: Path, n: int, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Grey squares cut at random from photographs: n for training and 400 for testing, [*,1,size,size] uint8.

    Squares for testing are cut from other photographs, a tenth of them, than those for training; all from the largest
    central square of a photograph.

    Args:
        path: a folder, .zip, ... of photographs (docs/data.md), whose pixels are taken as they are.

    Raises:
        FastdiffError: data that cannot be read, fewer than two photographs, or one smaller than a square.
    """
    from fastdiff.data.fit import fit_image
    from fastdiff.data.readers import read

    _check_count(n)
    photos = read(path)
    if len(photos) < 2:
        raise FastdiffError(f"{path} has one photograph; training and testing need at least two")
    rng = np.random.default_rng(seed)
    order, held = rng.permutation(len(photos)), max(1, len(photos) // 10)

    def squares(chosen: np.ndarray, count: int) -> Tensor:
        made = np.empty((count, 1, size, size), np.uint8)
        for part, index in zip(np.array_split(made, len(chosen)), chosen.tolist(), strict=True):
            photo = photos.image(index)
            side = min(np.asarray(photo).shape[:2])
            if side < size:
                raise FastdiffError(
                    f"{photos.name(index)} is smaller than {size}x{size}; give a smaller --size"
                )
            grey = fit_image(photo, side, 1)[:, :, 0]
            for square in part:
                y, x = rng.integers(side - size + 1, size=2)
                square[0] = grey[y : y + size, x : x + size]
        return torch.from_numpy(made)

    return squares(order[held:], n), squares(order[:held], 400)


def read_images(path: Path, size: int, channels: int) -> Tensor:
    """Images of an IDX file, an .npz or a folder, [N, channels, size, size] uint8; smaller ones are padded.

    Raises:
        FastdiffError: see :func:`fastdiff.data.images.load_data`.
    """
    from fastdiff.data.images import load_data

    data = load_data(path, image_size=size, channels=channels, num_classes=None, fit="pad")
    return data.fetch(torch.arange(len(data)))


def read_cifar10(path: Path) -> Tensor:
    """Images of CIFAR-10's binary version, [N, 3, 32, 32] uint8: records of a label and 3072 bytes.

    Raises:
        FastdiffError: a missing file, or one whose length is no multiple of 3073 bytes.
    """
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FastdiffError(f"cannot read {path}: {error.strerror or error}") from None
    if not len(raw) or len(raw) % 3073:
        raise FastdiffError(f"{path} is no file of CIFAR-10's binary version: {len(raw)} bytes, not n x 3073")
    return torch.from_numpy(raw.reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32).copy())


class Standardised:
    """Images [N,C,H,W] uint8 as real numbers of mean 0 and variance 1, with uniform dequantisation.

    x = (grey + u - mean) / deviation, u uniform in [0, 1): a density over x then bounds the probability of the
    greys, and log2(deviation) bits a pixel convert between the two.
    """

    def __init__(self, images: Tensor) -> None:
        """Raises FastdiffError: images that are empty or not uint8 [N,C,H,W], or all of one grey."""
        if images.ndim != 4 or not images.numel() or images.dtype != torch.uint8:
            raise FastdiffError(
                f"images must be uint8 [N,C,H,W], N >= 1, got {images.dtype} {list(images.shape)}"
            )
        self.images = images
        self.mean = float(images.double().mean()) + 0.5
        self.deviation = float((images.double().var(correction=0) + 1 / 12).sqrt())
        if self.deviation < 1:
            raise FastdiffError("the images are all of one grey; there is nothing to learn")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[N,C,H,W] uint8 to float32, with fresh dequantisation noise."""
        u = torch.rand(images.shape, generator=generator)
        return (images + u - self.mean) / self.deviation

    def to_grey(self, x: Tensor) -> Tensor:
        """Back to uint8, cut off at 0 and 255."""
        return (x * self.deviation + self.mean - 0.5).round().clamp(0, GREYS - 1).to(torch.uint8)


def _check_count(n: int) -> None:
    if n < 1:
        raise FastdiffError(f"n must be at least 1, got {n}")
