"""guided-diffusion's ``logger``: values by key, written out together as a table, CSV and JSON lines.

Only the first process writes. ``configure`` names the folder: its argument, else OPENAI_LOGDIR, else a new temporary
one; the formats are those of OPENAI_LOG_FORMAT, else "stdout,log,csv".
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastdiff.interop.guided_diffusion.log_formats import CSVOutputFormat as CSVOutputFormat
from fastdiff.interop.guided_diffusion.log_formats import HumanOutputFormat as HumanOutputFormat
from fastdiff.interop.guided_diffusion.log_formats import JSONOutputFormat as JSONOutputFormat
from fastdiff.interop.guided_diffusion.log_formats import KVWriter as KVWriter
from fastdiff.interop.guided_diffusion.log_formats import SeqWriter as SeqWriter
from fastdiff.interop.guided_diffusion.log_formats import TensorBoardOutputFormat as TensorBoardOutputFormat
from fastdiff.interop.guided_diffusion.log_formats import make_output_format as make_output_format
from fastdiff.interop.guided_diffusion.log_formats import plain

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50


class Logger:
    """Values collected by key until ``dumpkvs`` writes them.

    Args:
        dir: the folder, or None.
        output_formats: what ``make_output_format`` makes, or anything that has ``writekvs`` or ``writeseq``.
        comm: accepted and not needed.
    """

    def __init__(self, dir: str | None, output_formats: Sequence[Any], comm: Any = None) -> None:
        self.dir, self.output_formats, self.comm = dir, list(output_formats), comm
        self.level = INFO
        self.name2val: dict[str, Any] = {}
        self.name2cnt: dict[str, int] = {}

    def logkv(self, key: str, val: Any) -> None:
        self.name2val[key] = val

    def logkv_mean(self, key: str, val: Any) -> None:
        if val is None:
            self.name2val[key] = val
            return
        count = self.name2cnt.get(key, 0)
        self.name2val[key] = (self.name2val.get(key, 0.0) * count + float(val)) / (count + 1)
        self.name2cnt[key] = count + 1

    def dumpkvs(self) -> dict[str, Any]:
        values = {k: plain(v) for k, v in self.name2val.items()}
        if self.level < DISABLED and values and _is_first():
            for output in self.output_formats:
                if hasattr(output, "writekvs"):
                    output.writekvs(values)
        self.name2val, self.name2cnt = {}, {}
        return values

    def log(self, *args: Any, level: int = INFO) -> None:
        if self.level <= level and _is_first():
            for output in self.output_formats:
                if hasattr(output, "writeseq"):
                    output.writeseq(args)

    def set_level(self, level: int) -> None:
        self.level = level

    def set_comm(self, comm: Any) -> None:
        self.comm = comm

    def get_dir(self) -> str | None:
        return self.dir

    def close(self) -> None:
        for output in self.output_formats:
            if hasattr(output, "close"):
                output.close()


def _is_first() -> bool:
    return get_rank_without_mpi_import() == 0


def get_rank_without_mpi_import() -> int:
    """This process's number among those that torchrun has started."""
    return int(os.environ.get("RANK", "0"))


class _Stdout:
    """sys.stdout as it is when something is written."""

    def write(self, text: str) -> None:
        sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


def _unconfigured() -> Logger:
    return Logger(None, [HumanOutputFormat(_Stdout())])


_current = _unconfigured()


def configure(
    dir: str | None = None, format_strs: Sequence[str] | None = None, comm: Any = None, log_suffix: str = ""
) -> None:
    """Begin to log into a folder, which is made. ``comm`` is accepted and not needed."""
    global _current
    folder = dir or os.environ.get("OPENAI_LOGDIR")
    if folder is None:
        stamp = datetime.datetime.now().strftime("openai-%Y-%m-%d-%H-%M-%S-%f")
        folder = os.path.join(tempfile.gettempdir(), stamp)
    folder = os.path.expanduser(folder)
    os.makedirs(folder, exist_ok=True)
    names = format_strs or os.environ.get("OPENAI_LOG_FORMAT", "stdout,log,csv").split(",")
    outputs = [
        HumanOutputFormat(_Stdout()) if name == "stdout" else make_output_format(name, folder, log_suffix)
        for name in names
        if name and (_is_first() or name == "stdout")
    ]
    _current = Logger(folder, outputs, comm)
    log(f"Logging to {folder}")


@contextlib.contextmanager
def scoped_configure(
    dir: str | None = None, format_strs: Sequence[str] | None = None, comm: Any = None
) -> Iterator[None]:
    """``configure`` for as long as the block lasts."""
    global _current
    before = _current
    configure(dir=dir, format_strs=format_strs, comm=comm)
    try:
        yield
    finally:
        _current.close()
        _current = before


def get_current() -> Logger:
    return _current


def get_dir() -> str | None:
    """The folder, or None before ``configure``."""
    return _current.dir


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
    _current.set_level(level)


def set_comm(comm: Any) -> None:
    _current.set_comm(comm)


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
    return _current.name2val


record_tabular, dump_tabular = logkv, dumpkvs


@contextlib.contextmanager
def profile_kv(scopename: str) -> Iterator[None]:
    """Add the seconds that the block takes under "wait_<name>"."""
    start, name = time.time(), f"wait_{scopename}"
    try:
        yield
    finally:
        _current.name2val[name] = _current.name2val.get(name, 0.0) + time.time() - start


def profile(n: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """:func:`profile_kv` around every call of the function that this decorates."""

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with profile_kv(n):
                return function(*args, **kwargs)

        return timed

    return decorator


def reset() -> None:
    """Back to before ``configure``."""
    global _current
    _current.close()
    _current = _unconfigured()
