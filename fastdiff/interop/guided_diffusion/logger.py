"""guided-diffusion's ``logger``: values by key, written out together as a table, CSV and JSON lines.

Only the first process writes. ``configure`` names the folder: its argument, else OPENAI_LOGDIR, else a new temporary
one; the formats are those of OPENAI_LOG_FORMAT, else "stdout,log,csv".
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50


class Logger:
    """Values collected by key until ``dumpkvs`` writes them."""

    def __init__(self, folder: str | None, formats: Sequence[str]) -> None:
        self.folder, self.formats, self.level = folder, formats, INFO
        self.values: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []

    def logkv(self, key: str, val: Any) -> None:
        self.values[key] = val

    def logkv_mean(self, key: str, val: Any) -> None:
        if val is None:
            self.values[key] = val
            return
        count = self._counts.get(key, 0)
        self.values[key] = (self.values.get(key, 0.0) * count + float(val)) / (count + 1)
        self._counts[key] = count + 1

    def dumpkvs(self) -> dict[str, Any]:
        values = {k: _plain(v) for k, v in self.values.items()}
        if self.level < DISABLED and values and _is_first():
            self._write(values)
        self.values, self._counts = {}, {}
        return values

    def log(self, *args: Any, level: int = INFO) -> None:
        if self.level <= level and _is_first():
            self._write_text(" ".join(map(str, args)) + "\n")

    def _write(self, values: dict[str, Any]) -> None:
        self._write_text(_table(values))
        if self.folder and "json" in self.formats:
            with open(Path(self.folder) / "progress.json", "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        if self.folder and "csv" in self.formats:
            self._rows.append(values)
            names = list(dict.fromkeys(name for row in self._rows for name in row))
            with open(Path(self.folder) / "progress.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(self._rows)

    def _write_text(self, text: str) -> None:
        if "stdout" in self.formats:
            sys.stdout.write(text)
            sys.stdout.flush()
        if self.folder and "log" in self.formats:
            with open(Path(self.folder) / "log.txt", "a", encoding="utf-8") as file:
                file.write(text)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _table(values: dict[str, Any]) -> str:
    shown = {k: f"{v:<8.3g}" if isinstance(v, float) else str(v) for k, v in sorted(values.items())}
    left, right = max(map(len, shown)), max(map(len, shown.values()))
    line = "-" * (left + right + 7) + "\n"
    return line + "".join(f"| {k:<{left}} | {v:<{right}} |\n" for k, v in shown.items()) + line


_current = Logger(None, ("stdout",))


def configure(
    dir: str | None = None, format_strs: Sequence[str] | None = None, comm: Any = None, log_suffix: str = ""
) -> None:
    """Begin to log into a folder, which is made. ``comm`` and ``log_suffix`` are accepted and not needed."""
    global _current
    folder = dir or os.environ.get("OPENAI_LOGDIR")
    if folder is None:
        stamp = datetime.datetime.now().strftime("openai-%Y-%m-%d-%H-%M-%S-%f")
        folder = os.path.join(tempfile.gettempdir(), stamp)
    folder = os.path.expanduser(folder)
    os.makedirs(folder, exist_ok=True)
    formats = format_strs or os.environ.get("OPENAI_LOG_FORMAT", "stdout,log,csv").split(",")
    _current = Logger(folder, [f for f in formats if f])
    log(f"Logging to {folder}")


def get_current() -> Logger:
    return _current


def get_dir() -> str | None:
    """The folder, or None before ``configure``."""
    return _current.folder


def log(*args: Any, level: int = INFO) -> None:
    """A line of text."""
    _current.log(*args, level=level)


def debug(*args: Any) -> None:
    log(*args, level=DEBUG)


def info(*args: Any) -> None:
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    log(*args, level=WARN)


def error(*args: Any) -> None:
    log(*args, level=ERROR)


def set_level(level: int) -> None:
    _current.level = level


def logkv(key: str, val: Any) -> None:
    """A value; the last one before ``dumpkvs`` counts."""
    _current.logkv(key, val)


def logkv_mean(key: str, val: Any) -> None:
    """A value; the mean of all before ``dumpkvs`` counts."""
    _current.logkv_mean(key, val)


def logkvs(d: dict[str, Any]) -> None:
    for key, value in d.items():
        logkv(key, value)


def dumpkvs() -> dict[str, Any]:
    """Write what has been collected and begin anew."""
    return _current.dumpkvs()


def getkvs() -> dict[str, Any]:
    return _current.values


record_tabular, dump_tabular = logkv, dumpkvs


@contextlib.contextmanager
def profile_kv(scopename: str) -> Iterator[None]:
    """Add the seconds that the block takes under "wait_<name>"."""
    start, name = time.time(), f"wait_{scopename}"
    try:
        yield
    finally:
        _current.values[name] = _current.values.get(name, 0.0) + time.time() - start


def reset() -> None:
    """Back to before ``configure``."""
    global _current
    _current = Logger(None, ("stdout",))
