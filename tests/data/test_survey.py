"""What is found in a data set, of all images or of some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastdiff.data.readers import read
from fastdiff.data.survey import count_classes, survey


def write(folder: Path) -> Path:
    """Nine pictures, wider from one to the next; the last is in colours, the fifth is broken."""
    for i in range(9):
        Image.new("RGB" if i == 8 else "L", (20 + i, 10 + 2 * i), i).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes(b"no picture")
    return folder


def test_all_and_some_images(tmp_path: Path) -> None:
    data = read(write(tmp_path))
    every = survey(data)
    assert (every.images, every.looked_at) == (9, 9) and sum(every.sizes.values()) == 8
    assert every.modes == {"L": 7, "RGB": 1} and every.channels == 3
    assert every.longest_side == 28 and every.shorter_side == 20  # of 10, 12, 14, 16, 20, 22, 24, 26
    assert len(every.broken) == 1 and "4.png" in every.broken[0]
    some = survey(data, 3)  # the first, the middle, the last
    assert some.looked_at == 3 and len(some.broken) == 1 and set(some.sizes) == {(20, 10), (28, 26)}


def test_arrays_are_known_as_a_whole(tmp_path: Path) -> None:
    images = np.zeros((9, 12, 16), np.uint8)
    images[1:, 0, 0] = [1, 2, 3, 4, 4, 6, 7, 8]
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(9) % 2)
    data = read(tmp_path / "x.npz")
    found = survey(data, 3)
    assert (found.looked_at, dict(found.sizes), found.channels) == (9, {(16, 12): 9}, 1)
    assert survey(data, duplicates=True).duplicates == [[4, 5]]
    assert count_classes(data.labels, ()) == {"0": 5, "1": 4}
    assert count_classes(data.labels, ("a", "b", "c")) == {"a": 5, "b": 4, "c": 0}
