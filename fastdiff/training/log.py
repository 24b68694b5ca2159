"""The log of a run: one JSON object per line, pictures, and the trackers that are told the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path, parse_json, writing
from fastdiff.training.trackers import Tracker, opener


class Log:
    """OUT/log.jsonl, whose lines have a ``step`` each and can be watched meanwhile; pictures in OUT/samples.

    Args:
        out: the run's folder.
        track: names of trackers that get both as well.
        trackers: trackers that are open already.

    Raises:
        FastdiffError: an unknown tracker, or one whose package is missing.
    """

    def __init__(self, out: Path, track: Sequence[str] = (), trackers: Sequence[Tracker] = ()) -> None:
        self._out, self.path = out, out / "log.jsonl"
        self._openers = [opener(name) for name in track]
        self._given, self._trackers = trackers, list[Tracker]()

    def resume(self, step: int, options: Mapping[str, Any] | None = None) -> None:
        """Open the log, and drop lines of later steps, which will be repeated, and an incomplete last line.

        Raises:
            FastdiffError: a line that this class did not write, or a file that cannot be written.
        """
        lines = self._lines()
        kept = [line for i, line in enumerate(lines) if line.endswith(b"\n") and self._step(i, line) <= step]
        if kept != lines:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(b"".join(kept))
        self._trackers = [open_one(self._out, step, options or {}) for open_one in self._openers]
        self._trackers += self._given

    def values(self, name: str) -> list[tuple[float, int]]:
        """The values of a name in the log, and the step of each."""
        lines = (parse_json(line) for line in self._lines())
        return [(line[name], line["step"]) for line in lines if line.get(name) is not None]

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        except OSError as error:
            raise FastdiffError(f"cannot read {self.path}: {error.strerror}") from None

    def _step(self, index: int, line: bytes) -> float:
        try:
            return float(parse_json(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise FastdiffError(
                f'line {index + 1} of {self.path} is no JSON object with a "step"; correct it, or move the file away'
            ) from None

    def write(self, line: dict[str, Any]) -> None:
        """Write a line, a ``step`` and numbers by name.

        Raises:
            FastdiffError: the disk is full, or the folder is gone.
        """
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {name: value for name, value in line.items() if name != "step"}
        for tracker in self._trackers:
            tracker.log(line["step"], numbers)

    def picture(self, step: int, picture: Image.Image) -> Path:
        """Write the picture OUT/samples/step-<step>.png, whose path is returned."""
        path = self._out / "samples" / f"step-{step:08d}.png"
        with writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
        for tracker in self._trackers:
            tracker.picture(step, "samples", picture)
        return path

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


class NoLog(Log):
    """The log of a process that leaves the writing to another one: it writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path())

    def resume(self, step: int, options: Mapping[str, Any] | None = None) -> None:
        pass

    def write(self, line: dict[str, Any]) -> None:
        pass

    def picture(self, step: int, picture: Image.Image) -> Path:
        return Path()
