"""The command as a process of its own: exit codes as a shell sees them, and Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

FASTDIFF = [sys.executable, "-m", "fastdiff"]


def test_a_mistake_is_told_in_one_line(checkpoints, tmp_path) -> None:
    argv = [*FASTDIFF, "sample", "--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--steps", 0]
    failed = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("fastdiff: steps ") and failed.stderr.count("\n") == 1


def test_a_reader_that_has_read_enough() -> None:
    """`fastdiff presets | head -1` ends without a traceback."""
    process = subprocess.Popen([*FASTDIFF, "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize("batch_size", [4, 1000], ids=["after-some-batches", "in-the-first-batch"])
def test_ctrl_c_keeps_what_is_finished(checkpoints, tmp_path: Path, batch_size: int) -> None:
    n, steps = 100_000, 100
    argv = [*FASTDIFF, "sample", "--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--n", n]
    argv += ["--steps", steps, "--batch-size", batch_size]
    with _in_a_terminal(argv) as (process, terminal):
        _wait_for_step(terminal, 2 * steps + 1 if batch_size == 4 else 1)
        process.send_signal(signal.SIGINT)
        err = "".join(_read(terminal))
        assert process.wait(timeout=180) == 130
        assert process.stdout is not None
        out = process.stdout.read()
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    if batch_size == 1000:
        assert last == "fastdiff: interrupted before any image was finished; nothing written"
        assert not list(tmp_path.iterdir()) and out.startswith("estimate ") and out.count("\n") == 1
        return
    with np.load(tmp_path / "samples.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert 8 <= len(images) < n and len(images) % 4 == 0
    assert labels.tolist() == np.resize(np.arange(3), len(images)).tolist()
    assert last == (
        f"fastdiff: interrupted after {len(images)} of {n} images; the same command goes on from there"
    )
    assert (tmp_path / "samples.png").exists()


@contextlib.contextmanager
def _in_a_terminal(argv: list[object]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process whose standard error is a terminal, which has bars, and this side of that terminal.

    It is gone at the end, however the test ends: this one would go on for an hour.
    """
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # no bar fits into no columns
    process = subprocess.Popen(
        list(map(str, argv)),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        # As in a terminal, also if this test runs where SIGINT is ignored (a shell's background job).
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    try:
        with process:
            try:
                yield process, terminal
            finally:
                process.kill()
    finally:
        os.close(terminal)


def _read(terminal: int) -> Iterator[str]:
    """What the terminal shows, until its process ends; two minutes at most, since a busy machine starts slowly."""
    end = time.monotonic() + 120
    while select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            yield os.read(terminal, 4096).decode()
        except OSError:  # how Linux says that the other side is closed
            return
    pytest.fail("the process neither showed anything nor ended")


def _wait_for_step(terminal: int, step: int) -> None:
    """Read the progress bar until it shows at least ``step`` steps."""
    shown = ""
    for part in _read(terminal):
        shown += part
        if any(int(done) >= step for done in re.findall(r"(\d+)/\d+ ", shown)):
            return
    pytest.fail(f"never came to step {step}: {shown}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastdiff", "presets"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "fastdiff: cannot write what is to be printed: No space left on device\n"
