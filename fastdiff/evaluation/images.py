"""Images for evaluation, all of one size, unchanged or fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from fastdiff.choices import Fit
from fastdiff.data.images import FittedImages, load_data
from fastdiff.data.readers import Arrays, EncodedImages, Header, read
from fastdiff.errors import FastdiffError
from fastdiff.scalars import plain

Shape = tuple[int, int, int]  # (C, H, W)
_COLOURS = {1: "grey", 3: "RGB"}


class OtherColours(FastdiffError):
    """RGB images where grey ones are wanted, which nothing fits."""


@dataclass(frozen=True)
class Images:
    """N images [C,H,W] uint8 with a name, in memory or decoded on access; labels [N] int64, if there are any."""

    images: Tensor | FittedImages
    name: str
    labels: Tensor | None = None
    count: int | None = None  # only the first ones; None: all

    def __len__(self) -> int:
        return len(self.images) if self.count is None else self.count

    def fetch(self, rows: Tensor) -> Tensor:
        """[n,C,H,W] uint8 at rows [n] int64.

        Raises:
            FastdiffError: an image that cannot be read or fitted, with its name.
        """
        return self.images[rows] if isinstance(self.images, Tensor) else self.images.fetch(rows, None)

    def first(self, n: int | None) -> Images:
        """The first n images; all if None.

        Raises:
            FastdiffError: fewer than n images.
        """
        n = plain(n)
        if n is not None and not 1 <= n <= len(self):
            raise FastdiffError(f"{self.name} holds {len(self)} images, not {n}")
        return self if n is None else replace(self, count=n)

    @property
    def names(self) -> list[str]:
        """Names of the images' files, or their numbers where they have none."""
        if isinstance(self.images, Tensor):
            return [str(row) for row in range(len(self))]
        return [self.images.source.name(row) for row in range(len(self))]

    @property
    def shape(self) -> Shape:
        if isinstance(self.images, FittedImages):
            return self.images.channels, self.images.size, self.images.size
        c, h, w = self.images.shape[1:]
        return c, h, w


def read_images(
    path: Path,
    shape: Shape | None = None,
    *,
    fit: Fit | None = None,
    why: str = "",
    num_classes: int | None = None,
    labels: Path | None = None,
    skip_broken: bool = False,
    progress: bool = False,
) -> Images:
    """Images of a folder, an archive, an IDX file or an .npz (guided-diffusion's, or with images and labels).

    Without ``fit`` every image is checked: all must have the same shape, and none may be transparent.

    Args:
        shape: shape that the images must have; None: that of the first.
        fit: how to fit images of another size, see :func:`fastdiff.data.fit.fit_image`; None: raise an error.
        why: what needs that shape, for the message.
        num_classes: also read labels, if there are any, which must be below this number.
        labels: the labels file of IDX images; None: it is found by its name.
        skip_broken: skip images of folders and archives that cannot be read, and log them, instead of raising.
        progress: show a bar if it takes longer than a second.

    Raises:
        FastdiffError: images that cannot be read, another shape, labels that do not fit.
    """
    raw = read(path, labels, progress=progress, skip_broken=skip_broken)
    first = _header(raw, 0)
    wanted = shape or first[:3]
    if wanted[1] != wanted[2]:
        raise FastdiffError(f"{path} holds {describe_shape(wanted)}; only square ones can be evaluated")
    alike = isinstance(raw, Arrays)  # an array's images have one shape
    count = 1 if alike else len(raw)
    bar = tqdm(range(count), "looking at images", unit="img", disable=not progress, delay=1, leave=False)
    for index in bar:
        name = "" if alike else f" (the first is {raw.name(index)})"
        _check(first if index == 0 else _header(raw, index), wanted, fit, f"{path} holds", why, name)
    has_labels = num_classes is not None and raw.labels is not None
    if has_labels and raw.class_names and len(raw.class_names) != num_classes:
        raise FastdiffError(f"{path} has {len(raw.class_names)} classes, the model {num_classes}")
    data = load_data(
        path,
        image_size=wanted[1],
        channels=wanted[0],
        num_classes=num_classes if has_labels else None,
        fit=fit or "crop",
        raw=raw,
    )
    return Images(data.images, str(path), data.labels)


def _check(header: Header, wanted: Shape, fit: Fit | None, holds: str, why: str, name: str) -> None:
    """Raise FastdiffError for an image of another shape, if ``fit`` does not say how to fit it."""
    found = header[:3]
    sentence = f"{holds} {describe_shape(found)} and {why or 'all'} must be {describe_shape(wanted)}"
    if wanted[0] < found[0]:
        raise OtherColours(f"{sentence}{name}")
    if fit is None and found != wanted:
        raise FastdiffError(f"{sentence}; give --fit pad or --fit crop to fit them{name}")
    if fit is None and header.transparent:
        raise FastdiffError(f"{holds} transparent images; give --fit crop to drop the transparency{name}")


def describe_shape(shape: Shape) -> str:
    """For example "grey images of 28 x 28 pixels"."""
    c, h, w = shape
    return f"{_COLOURS.get(c, f'{c}-channel')} images of {w} x {h} pixels"


def _header(raw: Arrays | EncodedImages, index: int) -> Header:
    if isinstance(raw, EncodedImages):
        return raw.header(index)
    image = raw.image(index)
    channels = image.shape[2] if image.ndim == 3 else 1
    return Header(1 if channels == 1 else 3, image.shape[0], image.shape[1], transparent=channels == 4)
