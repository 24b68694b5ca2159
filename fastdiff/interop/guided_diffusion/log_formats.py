"""guided-diffusion's output formats of a log: what ``Logger`` writes values and sequences to."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any


class KVWriter:
    """Takes values by key."""

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        raise NotImplementedError


class SeqWriter:
    """Takes words that make a line."""

    def writeseq(self, seq: Iterable[Any]) -> None:
        raise NotImplementedError


class HumanOutputFormat(KVWriter, SeqWriter):
    """A table for each set of values, in a file given by name, or open already."""

    def __init__(self, filename_or_file: Any) -> None:
        self.own_file = isinstance(filename_or_file, (str, os.PathLike))
        self.file: Any = filename_or_file
        if self.own_file:
            self.file = open(filename_or_file, "a", encoding="utf-8")  # noqa: SIM115 (until close)

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        self._write(table(kvs))

    def writeseq(self, seq: Iterable[Any]) -> None:
        self._write(" ".join(map(str, seq)) + "\n")

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()

    def close(self) -> None:
        if self.own_file:
            self.file.close()


class JSONOutputFormat(KVWriter):
    """A line of JSON for each set of values."""

    def __init__(self, filename: Any) -> None:
        self._filename = filename

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        with open(self._filename, "a", encoding="utf-8") as file:
            file.write(json.dumps({k: plain(v) for k, v in kvs.items()}) + "\n")

    def close(self) -> None:
        """Nothing is open between lines."""


class CSVOutputFormat(KVWriter):
    """A row for each set of values; a new key is a new column of all rows."""

    def __init__(self, filename: Any) -> None:
        self._filename, self._rows = filename, []

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        self._rows.append({k: plain(v) for k, v in kvs.items()})
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        with open(self._filename, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self._rows)

    def close(self) -> None:
        """Nothing is open between rows."""


class TensorBoardOutputFormat(KVWriter):
    """Scalars for TensorBoard, which must be installed."""

    def __init__(self, dir: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.dir, self.step = dir, 1
        self.writer = SummaryWriter(dir)

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        for key, value in kvs.items():
            self.writer.add_scalar(key, float(value), self.step)
        self.writer.flush()
        self.step += 1

    def close(self) -> None:
        self.writer.close()


def make_output_format(format: str, ev_dir: str, log_suffix: str = "") -> Any:
    """ "stdout", "log", "json", "csv" or "tensorboard", in a folder that is made."""
    os.makedirs(ev_dir, exist_ok=True)
    match format:
        case "stdout":
            return HumanOutputFormat(sys.stdout)
        case "log":
            return HumanOutputFormat(os.path.join(ev_dir, f"log{log_suffix}.txt"))
        case "json":
            return JSONOutputFormat(os.path.join(ev_dir, f"progress{log_suffix}.json"))
        case "csv":
            return CSVOutputFormat(os.path.join(ev_dir, f"progress{log_suffix}.csv"))
        case "tensorboard":
            return TensorBoardOutputFormat(os.path.join(ev_dir, f"tb{log_suffix}"))
    raise ValueError(f"Unknown format specified: {format}")


def plain(value: Any) -> Any:
    """A Python number, of a tensor or array of one."""
    return value.item() if hasattr(value, "item") else value


def table(values: Mapping[str, Any]) -> str:
    """Keys and values, sorted, in a frame."""
    numbers = {k: plain(v) for k, v in values.items()}
    shown = {k: f"{v:<8.3g}" if isinstance(v, float) else str(v) for k, v in sorted(numbers.items())}
    left, right = max(map(len, shown)), max(map(len, shown.values()))
    line = "-" * (left + right + 7) + "\n"
    return line + "".join(f"| {k:<{left}} | {v:<{right}} |\n" for k, v in shown.items()) + line
