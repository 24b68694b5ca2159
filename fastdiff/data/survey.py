"""What a data set holds: sizes, colours, broken images and duplicates, found by decoding its images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastdiff.data.readers import Arrays, EncodedImages, is_grey
from fastdiff.errors import FastdiffError

_AHEAD = 64  # pictures that threads decode before they are asked for
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by channels


@dataclass
class Survey:
    """Properties of the images that were decoded, ``looked_at`` of ``images``."""

    images: int
    looked_at: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # of each (width, height)
    modes: Counter[str] = field(default_factory=Counter)  # of each of Pillow's modes: L, RGB, RGBA, P, ...
    broken: list[str] = field(default_factory=list)  # a sentence each
    duplicates: list[list[int]] = field(default_factory=list)  # images with the same pixels, by their numbers

    @property
    def channels(self) -> int:
        """1 if every image is grey, else 3."""
        return 1 if all(map(is_grey, self.modes)) else 3

    @property
    def shorter_side(self) -> int:
        """The median of the shorter sides, in pixels."""
        sides = sorted(min(size) for size in self.sizes.elements())
        return sides[len(sides) // 2]

    @property
    def longest_side(self) -> int:
        """The longest side of all, in pixels."""
        return max(map(max, self.sizes))


class _Seen(NamedTuple):
    """One picture: its size and mode and, if asked for, a hash of its pixels; or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    content: bytes = b""
    broken: str = ""


def survey(
    data: Arrays | EncodedImages,
    most: int | None = None,
    *,
    duplicates: bool = False,
    progress: bool = False,
) -> Survey:
    """Decode images, in threads, and count what they are.

    Args:
        data: the images as they are stored.
        most: decode at most so many, spread evenly over the data, always the same; None: all.
        duplicates: also find images with the same pixels.
        progress: show a bar if it takes longer than a second.
    """
    if isinstance(data, Arrays) and not duplicates:  # all are of one shape
        height, width, *channels = data.images.shape[1:]
        size, mode, count = (width, height), _MODES.get(channels[0] if channels else 1, ""), len(data)
        return Survey(count, count, Counter({size: count}), Counter({mode: count}))
    count = len(data) if most is None else min(most, len(data))
    numbers = np.linspace(0, len(data) - 1, count).astype(np.int64).tolist()
    found = Survey(len(data), count)
    # The first image of each content, and all of them where there are several.
    first, groups = dict[bytes, int](), dict[int, list[int]]()
    looks = _in_threads(lambda number: _look(data, number, duplicates), numbers)
    bar = tqdm(looks, "checking images", count, unit="img", disable=not progress, delay=1, leave=False)
    for number, seen in zip(numbers, bar, strict=True):
        if seen.broken:
            found.broken.append(seen.broken)
            continue
        found.sizes[seen.size] += 1
        found.modes[seen.mode] += 1
        if duplicates and (before := first.setdefault(seen.content, number)) != number:
            groups.setdefault(before, [before]).append(number)
    found.duplicates = list(groups.values())
    return found


def count_classes(labels: np.ndarray | None, names: Sequence[str]) -> dict[str, int]:
    """Number of images of each class, by its name or else its number; empty without labels."""
    if labels is None:
        return {}
    counts = Counter(labels.tolist())
    return {
        names[i] if names else str(i): counts[i] for i in (range(len(names)) if names else sorted(counts))
    }


def _look(data: Arrays | EncodedImages, number: int, hashed: bool) -> _Seen:
    try:
        image = data.image(number)
    except FastdiffError as error:
        return _Seen(broken=str(error))
    if not isinstance(image, Image.Image):
        channels = image.shape[2] if image.ndim == 3 else 1
        pixels, size, mode = image.tobytes(), (image.shape[1], image.shape[0]), _MODES.get(channels, "")
    else:
        pixels, size, mode = image.convert("RGBA").tobytes() if hashed else b"", image.size, image.mode
    content = hashlib.blake2b(pixels, digest_size=16, key=repr(size).encode()).digest() if hashed else b""
    return _Seen(size, mode, content)


def _in_threads(work: Callable[[int], _Seen], numbers: Sequence[int]) -> Iterator[_Seen]:
    """``work`` of each number, in order; decoders give up Python's lock, so that threads use all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        todo: Iterable[int] = iter(numbers)
        while batch := list(islice(todo, _AHEAD)):
            yield from threads.map(work, batch)
