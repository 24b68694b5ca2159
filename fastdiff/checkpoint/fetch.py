"""Downloading a published checkpoint: it goes on where it broke off, and has its name once it has been checked."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from fastdiff.checkpoint.load import check_weights
from fastdiff.checkpoint.released import CACHE, Released
from fastdiff.errors import FastdiffError, reason
from fastdiff.files import locked, writing

TIMEOUT = 30.0  # seconds without a byte, or without an answer
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each new try; begun again whenever bytes have come
_PASSING = {408, 429, 500, 502, 503, 504}  # answers that another try may change
_CHUNK = 1 << 20
_LOG = logging.getLogger(__name__)


class _Dropped(Exception):
    """A connection that broke, or an answer that may change; the message says what happened."""

    answered = True


class _Unreachable(_Dropped):
    answered = False


@dataclass
class _Stated:
    """What the server says of the whole file."""

    size: int | None = None
    checksum: str | None = None


def fetch(row: Released, progress: bool = True) -> str:
    """Download a published checkpoint to ``row.path`` unless it is there, and check it in either case.

    A download that was stopped is continued. Meanwhile the file is in a folder ``<file>.part`` beside its place, which
    one process at a time may use.

    Returns:
        what was compared, in words.

    Raises:
        FastdiffError: no connection, an answer that says no, no room, another process that downloads the same file, or
            a file that is not the published one.
    """
    if row.path.exists():
        try:
            return check(row, row.path, _Stated())
        except FastdiffError as error:
            _LOG.warning("%s; it is downloaded again", error)
    folder = row.path.with_name(f"{row.file}.part")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, "wait until it has downloaded the file"):
            return _finish(row, folder / row.file, progress)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # unless a part was received


def _finish(row: Released, part: Path, progress: bool) -> str:
    stated = _download(row, part, progress)
    try:
        compared = check(row, part, stated)
    except FastdiffError as error:
        part.unlink()
        raise FastdiffError(f"{error}; it was removed, and the same command downloads it again") from None
    with writing(row.path):
        os.replace(part, row.path)
    return compared


def check(row: Released, file: Path, stated: _Stated) -> str:
    """Compare a file with what is published, or else with what the server has said of it, and with its preset.

    Raises:
        FastdiffError: it is another file, or damaged.
    """
    size, checksum = row.size or stated.size, row.checksum or stated.checksum
    found = file.stat().st_size
    if size not in (None, found):
        raise FastdiffError(f"{file} has {found} bytes, not {size}")
    compared = [] if size is None else [f"{size} bytes"]
    if checksum is not None:
        algorithm, _, expected = checksum.partition(":")
        if (digest := _digest(file, algorithm)) != expected:
            raise FastdiffError(f"{file} has the {algorithm.upper()} {digest}, not {expected}")
        whose = "published" if row.checksum else "the server's"
        compared.append(f"{whose} {algorithm.upper()} {expected}")
    else:
        compared.append("no checksum is published")
    count = check_weights(file, row.name)
    return ", ".join([*compared, f"{count} tensors with names and shapes of {row.name}"])


def _digest(file: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with open(file, "rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(row: Released, part: Path, progress: bool) -> _Stated:
    """Receive what ``part`` does not have yet, in as many tries as bring something."""
    tries, answered = 0, False
    with requests.Session() as session:
        while True:
            before = _size(part)
            try:
                return _receive(session, row, part, progress)
            except _Dropped as dropped:
                answered |= dropped.answered
                tries = 1 if _size(part) > before else tries + 1
                if not answered:
                    raise FastdiffError(
                        f"{row.address}: {dropped}; is this machine online? The file can also be downloaded"
                        f" elsewhere and put at {row.path}"
                    ) from None
                if tries > len(WAITS):
                    raise FastdiffError(
                        f"{row.address}: {dropped}, {tries} times; what was received is kept, and the same command"
                        " goes on from there"
                    ) from None
                _LOG.warning("%s: %s; next try in %g s", row.file, dropped, WAITS[tries - 1])
                time.sleep(WAITS[tries - 1])


def _receive(session: requests.Session, row: Released, part: Path, progress: bool) -> _Stated:
    """One request, for the bytes after those that are there."""
    have = _size(part)
    asked = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = session.get(row.address, headers=asked, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise _Unreachable(_in_words(error)) from None
    with response:
        stated = _stated(response, row)
        first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status_code == 416 and stated.size == have:
            return stated  # stopped between its last byte and its name
        if response.status_code == 416:
            part.unlink()
            raise _Dropped(f"the server has no more than {have} bytes")
        if response.status_code in _PASSING:
            raise _Dropped(f"the server answers {response.status_code} {response.reason}")
        if response.status_code not in (200, 206) or (first and int(first[1]) != have):
            raise FastdiffError(f"{row.address}: the server answers {response.status_code} {response.reason}")
        have = have if response.status_code == 206 else 0
        _check_room(row, part, stated.size, have)
        hidden = None if progress else True  # None: where standard error is no terminal
        bar = tqdm(total=stated.size, initial=have, desc=row.file, unit="B", unit_scale=True, disable=hidden)
        with bar, writing(part), open(part, "ab" if have else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
    if stated.size is not None and _size(part) < stated.size:
        raise _Dropped("the connection broke")
    return stated


def _stated(response: requests.Response, row: Released) -> _Stated:
    """Size and checksum of the whole file in an answer's headers.

    Raises:
        FastdiffError: not the size that is published.
    """
    headers = response.headers
    whole = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    size = whole[1] if whole else headers.get("Content-Length") if response.status_code == 200 else None
    md5 = headers.get("x-ms-blob-content-md5") or (
        headers.get("Content-MD5") if response.status_code == 200 else None
    )
    stated = _Stated(int(size) if size else None, f"md5:{base64.b64decode(md5).hex()}" if md5 else None)
    if None not in (row.size, stated.size) and row.size != stated.size:
        raise FastdiffError(f"{row.address} has {stated.size} bytes, and the published file {row.size}")
    return stated


def _check_room(row: Released, part: Path, size: int | None, have: int) -> None:
    missing, free = (size or row.size or 0) - have, shutil.disk_usage(part.parent).free
    if missing > free:
        raise FastdiffError(
            f"{row.file} needs {missing / 1e9:.2f} GB more in {part.parent.parent}, where {free / 1e9:.2f} GB are free;"
            f" make room, or set {CACHE} to another folder"
        )


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body; without OSErrors, which are those of the disk here."""
    try:
        yield from response.iter_content(_CHUNK)
    except requests.RequestException as error:
        raise _Dropped(_in_words(error)) from None


def _in_words(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer for {TIMEOUT:g} s"
    if isinstance(error, requests.ConnectionError) and not isinstance(error, requests.exceptions.SSLError):
        return "the server cannot be reached"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    return f"the connection failed ({reason(error)})"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
