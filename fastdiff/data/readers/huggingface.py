"""Data sets of Hugging Face's library ``datasets``: by name, saved by ``save_to_disk``, or as parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.data.readers.encoded import EncodedImages
from fastdiff.errors import FastdiffError, reason

PREFIX = "hf:"
_SPLIT = "train"  # where no other is named
_SAVED = ("state.json", "dataset_dict.json")  # in a folder of save_to_disk
# Columns of numbers or texts that are labels by their name.
_LABELS = ("label", "labels", "class", "fine_label")


@dataclass(frozen=True)
class HuggingFace(EncodedImages):
    """Images of one column of a data set; its arrow files are mapped, not read."""

    source: str
    table: Any  # datasets.Dataset, with the column's pictures as they are encoded
    column: str
    rows: np.ndarray  # [N] int64, rows of the table

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"row {self.rows[index]} of {self.source}"

    def data(self, index: int) -> bytes:
        picture = self.table[int(self.rows[index])][self.column]
        if picture is None:
            raise ValueError("the row has no image")
        return Path(picture["path"]).read_bytes() if picture["bytes"] is None else picture["bytes"]


def is_huggingface(path: Path) -> bool:
    """True for hf:NAME, a parquet file, a folder that holds some, or one of ``save_to_disk``."""
    if str(path).startswith(PREFIX):
        return True
    if path.is_dir():
        return any((path / name).is_file() for name in _SAVED) or bool(_parquet(path))
    return path.suffix == ".parquet" and path.is_file()


def read_huggingface(path: Path, label_column: str | None, *, progress: bool) -> HuggingFace:
    """The images and labels of a data set, in the columns that its types tell.

    Args:
        path: hf:NAME or hf:NAME:SPLIT (the default is train), a folder of ``save_to_disk``, or parquet.
        label_column: the column of labels; None: the only one of the type ClassLabel, else one called "label".
        progress: let the library show its bars.

    Raises:
        FastdiffError: the library is missing, the data set cannot be opened, or it has no image column.
    """
    library = _library(path)
    if not progress:
        library.disable_progress_bars()
    table = _open(library, path)
    typed = [name for name, kind in table.features.items() if isinstance(kind, library.Image)]
    images = typed or [name for name, kind in table.features.items() if _is_bytes(kind)]
    if not images:
        raise FastdiffError(f"{path} has no column of images, only {', '.join(table.features)}")
    column = "image" if "image" in images else images[0]
    labels, names = _labels(library, table, path, label_column)
    encoded = table.select_columns([column]).cast_column(column, library.Image(decode=False))
    return HuggingFace(labels, names, str(path), encoded, column, np.arange(len(table)))


def _open(library: Any, path: Path) -> Any:
    name, _, split = str(path).removeprefix(PREFIX).partition(":")
    try:
        if str(path).startswith(PREFIX):
            found = library.load_dataset(name)
        elif path.is_dir() and not _parquet(path):
            found, split = library.load_from_disk(str(path)), ""
        else:
            files = [str(file) for file in _parquet(path)] if path.is_dir() else [str(path)]
            found, split = library.load_dataset("parquet", data_files=files), ""
    except Exception as error:  # no such name, no connection, damaged files: its errors have no common class
        raise FastdiffError(f"cannot open {path}: {type(error).__name__}: {reason(error)}") from None
    if not isinstance(found, dict):
        return found
    chosen = split or (_SPLIT if _SPLIT in found else next(iter(found)))
    if chosen not in found:
        raise FastdiffError(f"{path} has no split {chosen!r}; it has {', '.join(found)}")
    return found[chosen]


def _is_bytes(kind: Any) -> bool:
    """True for a column of encoded files, or of {"bytes": ..., "path": ...}, as parquet of other programs has it."""
    return "bytes" in kind if isinstance(kind, dict) else getattr(kind, "dtype", None) == "binary"


def _labels(
    library: Any, table: Any, path: Path, given: str | None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    typed = [name for name, kind in table.features.items() if isinstance(kind, library.ClassLabel)]
    if given is not None and given not in table.features:
        raise FastdiffError(
            f"{path} has no column {given!r} for --labels; it has {', '.join(table.features)}"
        )
    if given is None and len(typed) > 1:
        raise FastdiffError(
            f"{path} has several columns of labels, {', '.join(typed)}; give --labels with one of them"
        )
    column = given or next(iter([*typed, *(name for name in _LABELS if name in table.features)]), None)
    if column is None:
        return None, ()
    values = np.asarray(table.select_columns([column])[:][column])
    if column in typed:
        return values, tuple(table.features[column].names)
    if values.dtype.kind in "US":
        names, numbers = np.unique(values, return_inverse=True)
        return numbers, tuple(names.tolist())
    return values, ()


def _parquet(folder: Path) -> Sequence[Path]:
    """The parquet files in a folder; where names tell, as in data sets of the Hub, only those for training."""
    files = sorted(folder.glob("*.parquet"))
    return [file for file in files if file.name.startswith(_SPLIT)] or files


def _library(path: Path) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FastdiffError(
            f"{path} is read by the package datasets, which is not installed: pip install datasets"
        ) from None
    return datasets
