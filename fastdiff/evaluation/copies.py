"""Near copies: which samples are a training image again, by heart, and which are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastdiff.errors import FastdiffError
from fastdiff.evaluation.images import Images
from fastdiff.images import grid

NEIGHBOURS = 50  # images whose mean distance is the measure of an image's surroundings
THRESHOLD = 0.5  # of d / mean: below it, a near copy
SHIFT = 1  # pixels of the compared size, in each direction
COMPARED = 32  # pixels: larger images are compared at this size
CALIBRATED = 1000  # reference images that are compared with the others, at most
_SHOWN, _BELOW = 12, 2  # columns of the picture, and neighbours below each sample
_BLOCK = 64  # images at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest reference images of N images, and how near they are.

    Attributes:
        rows: [N, k] int64: the k nearest reference images, the nearest first.
        distance: [N]: root mean square difference of pixels, of the nearest.
        ratio: [N]: that distance over the mean of those to the 50 nearest.
    """

    rows: Tensor
    distance: Tensor
    ratio: Tensor

    @property
    def share(self) -> float:
        """Share of images that are near copies."""
        return (self.ratio < THRESHOLD).double().mean().item()


def nearest(images: Images, reference: Images, *, progress: bool = False) -> Nearest:
    r"""The nearest reference images, by pixels, of each image, mirrored and shifted ones included.

    .. math::
        d(x, y) = \min_T \lVert T x - y \rVert_2 / \sqrt{D}, \qquad
        r(x) = d(x, y_1) \Big/ \frac{1}{50} \sum_{i=1}^{50} d(x, y_i)

    T mirrors or not, and shifts by up to a pixel in each direction (edges repeated); y_i is the i-th nearest reference
    image. Images of more than 32 pixels are compared at 32, as means of areas; D is the number of their values, and d
    is in units of 8-bit pixel values. Images among many alike (plain discs, say) are near to all of those; r asks
    whether one is nearer than the others are.

    Args:
        images, reference: of one shape. If they are the same object, each image is compared with all others.

    Raises:
        FastdiffError: images of different shapes, or no more than 50 reference images.

    Source: Carlini et al. 2023, "Extracting training data from diffusion models", section 5.1: an image with
    r < 0.5 is a copy (their alpha = 0.5, n = 50), without T.
    """
    return _nearest(images, reference, torch.arange(len(images)), images is reference, progress)


def among_themselves(reference: Images, *, progress: bool = False) -> Nearest:
    """:func:`nearest` of reference images, up to 1000 that are spread over all, each compared with all others.

    The share of near copies among them is what images that copy nothing would have: some pictures are alike.
    """
    count = min(len(reference), CALIBRATED)
    chosen = torch.linspace(0, len(reference) - 1, count).long()
    return _nearest(reference, reference, chosen, True, progress)


def _nearest(images: Images, reference: Images, rows: Tensor, others: bool, progress: bool) -> Nearest:
    if images.shape != reference.shape:
        raise FastdiffError(
            f"images of {images.name} and {reference.name} differ in shape; give --fit crop or pad"
        )
    if len(reference) <= NEIGHBOURS + others:
        raise FastdiffError(
            f"near copies are told by {NEIGHBOURS} neighbours; {reference.name} holds only {len(reference)} images"
        )
    blocks = torch.arange(len(reference)).split(_BLOCK)
    known = torch.cat([_reduced(reference.fetch(block)).flatten(1) for block in blocks])
    found: list[tuple[Tensor, Tensor]] = []
    bar = tqdm(total=len(rows), disable=not progress, unit="img", desc="nearest images")
    with bar:
        for block in rows.split(_BLOCK):
            distances = torch.full((len(block), len(known)), torch.inf, dtype=known.dtype)
            for moved in _moved(_reduced(images.fetch(block))):
                distances = torch.minimum(distances, torch.cdist(moved.flatten(1), known))
            if others:
                distances[torch.arange(len(block)), block] = torch.inf
            found.append(distances.topk(NEIGHBOURS, largest=False))
            bar.update(len(block))
    values = torch.cat([values for values, _ in found]) / known.shape[1] ** 0.5
    mean = values.mean(1)
    # Where all 50 are the very same image, r is 0 / 0, and the image is a copy.
    ratio = torch.where(mean > 0, values[:, 0] / mean, 0)
    return Nearest(torch.cat([rows for _, rows in found]), values[:, 0], ratio)


def _reduced(pixels: Tensor) -> Tensor:
    """[N,C,H,W] uint8 -> [N,C,h,w] float64 in 0 to 255, h and w at most COMPARED.

    Distances are computed from products, of which float32 would leave a quarter of a grey level between equal images.
    """
    size = [min(n, COMPARED) for n in pixels.shape[2:]]
    return F.interpolate(pixels.double(), size=size, mode="area")


def _moved(x: Tensor) -> Iterator[Tensor]:
    """x [N,C,H,W], mirrored or not, and shifted."""
    height, width = x.shape[2:]
    wide = F.pad(x, (SHIFT,) * 4, mode="replicate")
    for down in range(2 * SHIFT + 1):
        for right in range(2 * SHIFT + 1):
            shifted = wide[:, :, down : down + height, right : right + width]
            yield shifted
            yield shifted.flip(-1)


def summary(found: Nearest, base: Nearest, names: list[str]) -> dict[str, Any]:
    """What is known of the samples, as JSON.

    Args:
        base: of the reference images among themselves.
        names: of the reference images.
    """
    return {
        "images": len(found.ratio),
        "near_copies": round(found.share, 4),
        "near_copies_among_reference": round(base.share, 4),
        "threshold": THRESHOLD,
        "neighbours": NEIGHBOURS,
        "median_ratio": round(found.ratio.median().item(), 4),
        "median_ratio_among_reference": round(base.ratio.median().item(), 4),
        "samples": [
            {"nearest": names[row], "distance": round(distance, 2), "ratio": round(ratio, 4)}
            for row, distance, ratio in zip(
                found.rows[:, 0].tolist(), found.distance.tolist(), found.ratio.tolist(), strict=True
            )
        ],
    }


def picture(images: Images, reference: Images, found: Nearest) -> Image.Image:
    """Samples with their ratio, and below each its nearest reference images.

    The samples are spread evenly over the order of their ratios: the nearest copy is the first, the newest the last.
    """
    order = found.ratio.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().long()]
    rows = [images.fetch(chosen), *(reference.fetch(found.rows[chosen, k]) for k in range(_BELOW))]
    captions = [f"{ratio:.2f}" for ratio in found.ratio[chosen].tolist()]
    pixels = torch.cat(rows).movedim(1, -1).numpy()
    return grid(
        np.ascontiguousarray(pixels), captions + [""] * len(chosen) * _BELOW, columns=len(chosen), tile=96
    )
