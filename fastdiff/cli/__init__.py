"""The command line, generated from one dataclass per command."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import fastdiff
from fastdiff.errors import FastdiffError

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
PIPE_CLOSED = 141  # and for one that wrote into a closed pipe, such as `fastdiff presets | head -1`


def main(argv: Sequence[str] | None = None) -> int:
    """``fastdiff <command> [options]``.

    Exit codes: 0, done; 2, bad input, with one line on standard error; 130, Ctrl-C; 141, the output pipe is closed.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except FastdiffError as error:
        print(f"fastdiff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"fastdiff: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_what_is_left()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_what_is_left()
        print(f"fastdiff: cannot write what is to be printed: {error.strerror}", file=sys.stderr)
        return 2


def _drop_what_is_left() -> None:
    """Discard what is left of standard output, which Python would write at exit and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str]) -> int:
    if len(argv) > 1 and argv[0] == "run" and not argv[1].startswith("-"):
        from fastdiff.cli.run import run_script  # all arguments after the script's name are the script's

        return run_script(argv[1:])
    if list(argv) in (["--version"], ["-V"]):
        print(f"fastdiff {fastdiff.__version__}")
        return 0
    from fastdiff.cli.parse import parse

    command = parse(argv)
    with _interrupt_at_once():
        from fastdiff.backend import usable_device  # and with it PyTorch, which help does without
    if getattr(command, "device", None) == "auto":
        command = replace(command, device=str(usable_device("auto")))
    # Where there is no terminal a bar is one line without an end.
    if not (sys.stderr.isatty() or getattr(command, "tells_lines", False)) and hasattr(command, "progress"):
        command = replace(command, progress=False)
    logging.basicConfig(level=logging.WARNING, format="fastdiff: %(message)s")
    return command.run()


@contextlib.contextmanager
def _interrupt_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process without an exception.

    Importing PyTorch takes a second, and a KeyboardInterrupt that PyTorch's or NumPy's start-up code catches would
    appear later as an unrelated traceback.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # the caller has a handler of its own, or no handler can be set
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
