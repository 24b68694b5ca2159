"""A walk through a tar file that accounts for every byte of it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastdiff.training.readers.left_out import LeftOut

_BLOCK = tarfile.BLOCKSIZE


def members(file: IO[bytes], path: Path, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file that are whole, in order. The rest of it must be zeros, among them its end mark.

    Python's own ``TarFile.next`` takes a header that is broken for the end of the archive.

    Args:
        file: open for reading. The caller may move in it.
        path: for messages.
        left_out: hears of what belongs to no member; if it does not raise, the walk goes on behind that.

    Raises:
        FastdiffError: what belongs to no member, with its offset.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        left_out.refuse(f"{path} is empty")
        return
    tar = tarfile.TarFile(fileobj=file)  # opened at the end, where it finds nothing
    position, broken, ended = 0, -1, False
    while position < size:
        member, stop, why = _header(tar, file, position, size)
        if member is None and not why:
            stop, ended = _zeros(file, position, size), True
        if why and broken < 0:
            broken = position
            if not left_out.skip_broken:
                left_out.refuse(f"{path} is damaged at byte {position}: {why}")
        elif not why and broken >= 0:
            left_out.refuse(f"{path}: bytes {broken} to {position} belong to no member")
            broken = -1
        if member is not None:
            ended = False
            yield member
        position = stop
    if broken >= 0:
        left_out.refuse(f"{path}: bytes {broken} to {size} belong to no member")
    elif not ended:
        left_out.refuse(f"{path} is cut short: it ends at byte {size} without the mark of its end")


def _header(
    tar: tarfile.TarFile, file: IO[bytes], position: int, size: int
) -> tuple[tarfile.TarInfo | None, int, str]:
    """What is at a position: a member, where the next header is, and otherwise why it is none; "" for zeros."""
    file.seek(position)
    try:
        member = tarfile.TarInfo.fromtarfile(tar)
        stop: int = tar.offset  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # a damaged header, or a damaged one behind a long name, fails in any way
        file.seek(position)
        block = file.read(_BLOCK)
        if not any(block):
            return None, position + _BLOCK, ""
        return (
            None,
            position + _BLOCK,
            str(error) if isinstance(error, tarfile.HeaderError) else "broken header",
        )
    if member.size < 0 or stop <= position or member.issparse():
        return None, position + _BLOCK, "a member of negative or sparse size"
    if stop - _BLOCK >= size or member.offset_data + _stored(member) > size:
        return None, size, f"{member.name} is cut short"
    return member, stop, ""


def _stored(member: tarfile.TarInfo) -> int:
    return member.size if member.isreg() else 0


def _zeros(file: IO[bytes], position: int, size: int) -> int:
    """Where the zeros that begin at a position end, in whole blocks."""
    file.seek(position)
    while position < size:
        chunk = file.read(_BLOCK * 64)
        filled = len(chunk) - len(chunk.lstrip(b"\0"))
        if filled < len(chunk):
            return position + filled // _BLOCK * _BLOCK
        position += len(chunk)
    return size
