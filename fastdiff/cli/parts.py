"""A run's finished batches on disk: what lets it go on where it stopped, and several processes share it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

POLL_SECONDS = 0.2


def process() -> tuple[int, int]:
    """This process's rank and their number, as torchrun tells them; 0 and 1 alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Parts:
    """OUT/samples.parts: one file for each finished batch, and the settings that all of them have in common.

    Raises:
        FastdiffError: the folder holds batches of a run with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], count: int) -> None:
        self.folder, self.count = out / "samples.parts", count
        self._settings, self._about = settings, self.folder / "settings.json"
        if self._about.exists():
            before = json.loads(self._about.read_text(encoding="utf-8"))
            other = [name for name in settings if before.get(name) != settings[name]]
            if other:
                raise FastdiffError(
                    f"{self.folder} holds the beginning of a run with another {', '.join(other)};"
                    " give its options to go on, another --out, or delete the folder"
                )

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.npy"

    def __contains__(self, index: int) -> bool:
        return self._file(index).exists()

    def write(self, index: int, images: np.ndarray) -> None:
        """Batch ``index``, [M,H,W,C] uint8."""
        if not self._about.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._about) as path:
                path.write_text(json.dumps(self._settings), encoding="utf-8")
        with atomic_path(self._file(index)) as path, open(path, "wb") as file:
            np.save(file, images)

    def wait(self) -> None:
        """Until every batch is there, other processes' too."""
        while not all(index in self for index in range(self.count)):
            time.sleep(POLL_SECONDS)

    def finished(self) -> list[np.ndarray]:
        """The batches from the first to the first that is missing."""
        found = []
        for index in range(self.count):
            if index not in self:
                break
            found.append(np.load(self._file(index)))
        return found

    def remove(self) -> None:
        """When their images are in the results."""
        shutil.rmtree(self.folder, ignore_errors=True)
