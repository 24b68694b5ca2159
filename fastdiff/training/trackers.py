"""Trackers, which show the numbers and pictures of a run: CSV, TensorBoard, Weights & Biases, or your own."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fastdiff.errors import FastdiffError, reason
from fastdiff.files import atomic_path, writing


class Tracker(Protocol):
    """What follows a run. The first process alone calls it, in the order of the steps."""

    def log(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Numbers by name after ``step`` steps, such as loss, lr, val_loss and fid; None where there is none."""
        ...

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """A picture, such as the grid of samples, whose name is "samples"."""
        ...

    def close(self) -> None:
        """The run ends or stops."""
        ...


# The run's folder, the steps made before (0: a new run), and the run's options. A run that goes on repeats the steps
# beyond those: what the tracker has of them is replaced.
Opener = Callable[[Path, int, Mapping[str, Any]], Tracker]


def opener(name: str) -> Opener:
    """What opens a tracker.

    Raises:
        FastdiffError: an unknown name, or a package that is missing.
    """
    known = {"csv": lambda: Csv, "tensorboard": _tensorboard, "wandb": _wandb}
    if name not in known:
        raise FastdiffError(f"unknown tracker {name!r}; known: {', '.join(known)}")
    return known[name]()


def tag(name: str) -> str:
    """The group of a number and its name there: val_loss is val/loss, fid val/fid, loss train/loss."""
    if name.startswith("val_"):
        return f"val/{name[4:]}"
    return f"val/{name}" if "fid" in name else f"train/{name}"


class Csv:
    """OUT/log.csv: a column for each name, a row for each line of log.jsonl."""

    def __init__(self, out: Path, step: int, options: Mapping[str, Any]) -> None:
        self._path = out / "log.csv"
        rows = [row for row in self._rows() if self._step(row) <= step]
        self._columns = list(rows[0]) if rows else ["step"]
        self._rewrite(rows)

    def log(self, step: int, numbers: Mapping[str, float | None]) -> None:
        if new := [name for name in numbers if name not in self._columns]:
            self._columns += new
            self._rewrite(self._rows())
        with writing(self._path), open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step, **numbers})

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        pass

    def close(self) -> None:
        pass

    def _rows(self) -> list[dict[str, str]]:
        """The rows, without an incomplete last one."""
        try:
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise FastdiffError(f"cannot read {self._path}: {reason(error)}") from None
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    def _step(self, row: dict[str, str]) -> float:
        try:
            return float(row["step"])
        except (ValueError, KeyError, TypeError):
            raise FastdiffError(f"{self._path} has a row without a step; move the file away") from None

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class TensorBoard:
    """OUT/tensorboard. The files of a stopped run stay; their entries for later steps are ignored."""

    def __init__(self, out: Path, step: int, options: Mapping[str, Any]) -> None:
        self._folder = out / "tensorboard"
        self._writer: Any = _summary_writer()(str(self._folder), purge_step=step + 1)

    def log(self, step: int, numbers: Mapping[str, float | None]) -> None:
        with writing(self._folder):
            for name, value in numbers.items():
                if value is not None:
                    self._writer.add_scalar(tag(name), value, step)
            self._writer.flush()  # otherwise a kill would lose up to two minutes

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        with writing(self._folder):
            self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, set up by its environment: WANDB_PROJECT (here "fastdiff"), WANDB_MODE=offline, ...

    Its identifier of the run is in OUT/wandb-run-id.txt, so that a run that goes on is the same there. It passes over
    steps that it has already; a run that goes on repeats them with the same numbers.
    """

    def __init__(self, out: Path, step: int, options: Mapping[str, Any]) -> None:
        self._module = _import_wandb()
        file = out / "wandb-run-id.txt"
        known = file.read_text(encoding="utf-8").strip() if step and file.exists() else None
        try:
            self._run = self._module.init(
                project=os.environ.get("WANDB_PROJECT", "fastdiff"),
                name=out.resolve().name,
                dir=str(out),
                id=known,
                resume="allow" if known else None,
                config={key: _simple(value) for key, value in options.items()},
            )
        except Exception as error:  # no account, no connection, ...: its errors have no common class
            raise FastdiffError(
                f"Weights & Biases cannot be started ({reason(error)}); "
                "log in by wandb login, or set WANDB_MODE=offline"
            ) from None
        with atomic_path(file) as temporary:
            temporary.write_text(f"{self._run.id}\n", encoding="utf-8")

    def log(self, step: int, numbers: Mapping[str, float | None]) -> None:
        self._run.log({tag(name): value for name, value in numbers.items() if value is not None}, step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._run.log({name: self._module.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _simple(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, type(None))) else str(value)


def _tensorboard() -> Opener:
    _summary_writer()
    return TensorBoard


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    return SummaryWriter


def _wandb() -> Opener:
    _import_wandb()
    return WandB


def _import_wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("wandb") from None
    return wandb


def _missing(package: str) -> FastdiffError:
    return FastdiffError(
        f"--track {package} needs the package {package}: pip install {package}, or leave it out"
    )
