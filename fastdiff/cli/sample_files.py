"""What a sampling run leaves in its folder, written batch by batch: the images never are in memory all at once."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from fastdiff.files import atomic_path, writing
from fastdiff.images import grid


def write_npz(path: Path, images: Iterable[np.ndarray], n: int, labels: np.ndarray | None) -> None:
    """The file that ``np.savez(path, all_images, labels)`` writes, from batches.

    Args:
        path: the file, which is written atomically.
        images: batches [M,H,W,C] uint8, of n images together.
        n: number of images.
        labels: [n] int64, or None for a file without them.
    """

    def write_images(file: IO[bytes]) -> None:
        left = n
        for batch in images:
            if left == n:
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, *batch.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(batch).data)
            left -= len(batch)
        assert left == 0, f"{left} of {n} images are missing"

    members: dict[str, Callable[[IO[bytes]], None]] = {"arr_0.npy": write_images}
    if labels is not None:
        members["arr_1.npy"] = lambda file: np.lib.format.write_array(file, labels)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, write in members.items():
            with archive.open(name, "w", force_zip64=True) as file:
                write(file)


def write_pngs(folder: Path, images: Iterable[np.ndarray]) -> None:
    """Each image as FOLDER/000000.png, ...; those of a longer run before are removed."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
    count = 0
    for image in (image for batch in images for image in batch):
        # Not flushed to the disk one by one: the command can make them again.
        with atomic_path(_png(folder, count), durable=False) as path:
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path, format="PNG")
        count += 1
    with writing(folder):
        while (left := _png(folder, count)).exists():
            left.unlink()
            count += 1


def _png(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def write_preview(
    path: Path,
    images: Iterable[np.ndarray],
    labels: np.ndarray | None,
    names: Sequence[str],
    columns: int | None,
) -> None:
    """A picture of the images, with the class of each below it: its name, or its number where there are no names."""
    shown = np.concatenate(list(images))
    captions = None if labels is None else [names[int(k)] if names else str(k) for k in labels[: len(shown)]]
    with atomic_path(path) as temporary:
        grid(shown, captions, columns=columns).save(temporary, format="PNG")
