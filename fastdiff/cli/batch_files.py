"""A sampling run's finished batches on disk, so that it can continue after a stop and processes can share it."""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fastdiff.data.readers import read_npz
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path, crc32, parse_json, writing

POLL_SECONDS = 0.2


def fingerprint(model: nn.Module) -> int:
    """Checksum of a model's weights, by which other weights under the same file name are noticed."""
    checksums = [crc32(name, value) for name, value in model.state_dict().items()]
    return zlib.crc32(repr(checksums).encode())


class BatchFiles:
    """OUT/samples.parts: one file for each finished batch, and the settings that all of them have in common.

    Args:
        out: the folder of results.
        settings: everything that the images depend on.
        n: number of images of the whole run.
        batch_size: number of images of a batch; the last one may have fewer.

    Raises:
        FastdiffError: the folder holds batches of a run with other settings, or settings that cannot be read.
    """

    def __init__(self, out: Path, settings: dict[str, Any], n: int, batch_size: int) -> None:
        self.folder, self.n, self.batch_size = out / "samples.parts", n, batch_size
        self.count = -(-n // batch_size)
        self._settings, self._about = settings, self.folder / "settings.json"
        if self._about.exists():
            before = self._read_settings()
            other = [name for name in settings if before.get(name) != settings[name]]
            if other:
                raise FastdiffError(
                    f"{self.folder} holds the beginning of a run with another {', '.join(other)};"
                    " give its options to go on, another --out, or delete the folder"
                )
        elif any(self.folder.glob("*.npz")):
            raise FastdiffError(
                f"{self.folder} holds batches without {self._about.name}; delete it to begin anew"
            )
        self._seen = {index for index in range(self.count) if index in self}

    def _read_settings(self) -> dict[str, Any]:
        try:
            before = parse_json(self._about.read_bytes())
        except (OSError, ValueError) as error:
            before = str(error)
        if not isinstance(before, dict):
            raise FastdiffError(f"{self._about} cannot be read; delete {self.folder} to begin anew")
        return before

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.npz"

    def __contains__(self, index: int) -> bool:
        return self._file(index).exists()

    def write(self, index: int, images: np.ndarray) -> None:
        """Batch ``index``, [M,H,W,C] uint8.

        Raises:
            FastdiffError: the disk is full, or the folder of results is gone.
        """
        if not self._about.exists():
            with writing(self.folder):
                self.folder.mkdir(exist_ok=True)
            with atomic_path(self._about) as path:
                path.write_text(json.dumps(self._settings), encoding="utf-8")
        # Not flushed to the disk, which would take a hundredth of a fast model's time: an .npz has a checksum, so a
        # file that a power cut damaged is recognised, and its batch is made again.
        with atomic_path(self._file(index), durable=False) as path, open(path, "wb") as file:
            np.savez(file, images=images)
        self._seen.add(index)

    def wait(self) -> None:
        """Wait until every batch is there, including those of other processes.

        Raises:
            FastdiffError: a batch that had been written is gone.
        """
        while True:
            there = {index for index in range(self.count) if index in self}
            if gone := self._seen - there:
                raise FastdiffError(
                    f"{self._file(min(gone))} was written and is gone; run the command again to make it anew"
                )
            if len(there) == self.count:
                return
            self._seen = there
            time.sleep(POLL_SECONDS)

    @property
    def images_finished(self) -> int:
        """Number of images in the batches before the first missing one."""
        missing = next((index for index in range(self.count) if index not in self), self.count)
        return min(missing * self.batch_size, self.n)

    def finished(self, first: int | None = None) -> Iterator[np.ndarray]:
        """The batches before the first missing one, [M,H,W,C] uint8, read one by one.

        Args:
            first: only the images before this one; None: all.

        Raises:
            FastdiffError: a batch's file is damaged.
        """
        end = self.images_finished if first is None else min(first, self.images_finished)
        for start in range(0, end, self.batch_size):
            file = self._file(start // self.batch_size)
            try:
                images = read_npz(file).images
                if images.ndim != 4 or len(images) != min(self.batch_size, self.n - start):
                    raise FastdiffError(f"{file} holds {list(images.shape)} and not a batch of the run")
            except FastdiffError as error:
                raise FastdiffError(
                    f"{error}; delete it, and run the command again to make it anew"
                ) from None
            yield images[: end - start]

    def remove(self) -> None:
        """Delete the batches' files; to be called when their images are in the results."""
        shutil.rmtree(self.folder, ignore_errors=True)
