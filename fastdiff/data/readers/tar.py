"""A walk through a tar file that accounts for every byte of it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastdiff.data.readers.left_out import LeftOut

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE


def members(file: IO[bytes], path: Path, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    """The undamaged members of a tar file, in order. Every byte must belong to a member or to the end mark of zeros.

    (Python's own ``TarFile.next`` mistakes a broken header for the end of the archive.)

    Args:
        file: the tar file, open for reading. The caller may seek in it.
        path: its path, for messages.
        left_out: is told of bytes that belong to no member; if it does not raise, the walk continues after them.

    Raises:
        FastdiffError: bytes that belong to no member, with their offset.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        left_out.refuse(f"{path} is empty")
        return
    tar = tarfile.TarFile(fileobj=file)  # opened at the end, where it finds nothing
    position = end = broken = 0  # where it looks; where the last member and the last broken block end
    why = ""
    while position < size:
        member, stop, reason = _header(tar, file, position, size)
        if reason:
            if not left_out.skip_broken:
                left_out.refuse(f"{path} is damaged at byte {end if position > end else position}: {reason}")
            why, broken = why or reason, stop
        elif member is None:
            stop = _zeros(file, position, size)
        else:
            if position > end:
                left_out.refuse(f"{path}: bytes {end} to {position} belong to no member ({why or 'zeros'})")
            end, why = stop, ""
            yield member
        position = stop
    _check_end(
        end, size, path, left_out, f"bytes {end} to {broken} belong to no member ({why})" if why else ""
    )


def _check_end(end: int, size: int, path: Path, left_out: LeftOut, broken: str) -> None:
    """The end mark is two blocks of zeros, of which one may be lost, or more, which fill the last record."""
    whole = end + 2 * _BLOCK
    if broken:
        left_out.refuse(f"{path}: {broken}")
    elif end + _BLOCK > size:
        left_out.refuse(f"{path} is cut short: it ends at byte {size} without the mark of its end")
    elif size > max(whole, -(-whole // _RECORD) * _RECORD):
        left_out.refuse(
            f"{path}: bytes {end} to {size} are zeros, more than an archive has at its end: a part of it is missing"
        )


def _header(
    tar: tarfile.TarFile, file: IO[bytes], position: int, size: int
) -> tuple[tarfile.TarInfo | None, int, str]:
    """Read the header at a position: a member and the next header's position, or why there is none; "" for zeros."""
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
