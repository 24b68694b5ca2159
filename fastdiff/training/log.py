"""The log of a run: one JSON object per line, and TensorBoard's files if configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path, parse_json, writing


class Log:
    """OUT/log.jsonl, whose lines have a ``step`` each and can be watched meanwhile; pictures in OUT/samples.

    Args:
        out: the run's folder.
        tensorboard: write both to OUT/tensorboard as well.

    Raises:
        FastdiffError: TensorBoard's package is missing.
    """

    def __init__(self, out: Path, *, tensorboard: bool = False) -> None:
        self._out, self.path = out, out / "log.jsonl"
        self._writer_class = _summary_writer() if tensorboard else None
        self._board: Any = None

    def resume(self, step: int) -> None:
        """Open the log, and drop lines of later steps, which will be repeated, and an incomplete last line.

        Raises:
            FastdiffError: a line that this class did not write, or a file that cannot be written.
        """
        lines = self._lines()
        kept = [line for i, line in enumerate(lines) if line.endswith(b"\n") and self._step(i, line) <= step]
        if kept != lines:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(b"".join(kept))
        if self._writer_class is not None:
            # The files of a stopped run stay; their entries for later steps are ignored.
            self._board = self._writer_class(str(self._out / "tensorboard"), purge_step=step + 1)

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
        """Write a line. In TensorBoard its numbers are train/<name>, or val/<name> if they are named val_<name>.

        Raises:
            FastdiffError: the disk is full, or the folder is gone.
        """
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            self._write_to_board(line)

    def _write_to_board(self, line: dict[str, Any]) -> None:
        with writing(self._out / "tensorboard"):
            for name, value in line.items():
                if name != "step" and value is not None:
                    tag = f"val/{name[4:]}" if name.startswith("val_") else f"train/{name}"
                    self._board.add_scalar(tag, value, line["step"])
            self._board.flush()  # otherwise a kill would lose up to two minutes

    def picture(self, step: int, picture: Image.Image) -> None:
        """Write the picture OUT/samples/step-<step>.png."""
        path = self._out / "samples" / f"step-{step:08d}.png"
        with writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
        if self._board is not None:
            self._board.add_image("samples", np.asarray(picture), step, dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()


class NoLog(Log):
    """The log of a process that leaves the writing to another one: it writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path())

    def resume(self, step: int) -> None:
        pass

    def write(self, line: dict[str, Any]) -> None:
        pass

    def picture(self, step: int, picture: Image.Image) -> None:
        pass


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise FastdiffError(
            "--tensorboard needs the package tensorboard: pip install tensorboard, or leave it out"
        ) from None
    return SummaryWriter
