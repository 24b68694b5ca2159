"""A .zip of image files."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fastdiff.data.readers.encoded import EncodedImages, pack, unpack
from fastdiff.data.readers.labels import LISTING, labels_by_folder, labels_by_listing, read_listing
from fastdiff.data.readers.left_out import LeftOut
from fastdiff.data.readers.pictures import EXTENSIONS, is_hidden, is_image
from fastdiff.errors import FastdiffError, reason

_SIGNATURE = b"PK\3\4"
_HEADER = struct.Struct("<4s22xHH")  # before each member: signature, lengths of its name and extra field
_ENTRY = np.dtype(
    [("header", "i8"), ("size", "i8"), ("whole", "i8"), ("crc", "u4"), ("name", "u4"), ("deflated", "?")]
)  # "name" is a checksum of it
_LONGEST_END = (1 << 16) + 200  # bytes of the records after the directory, a comment among them
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED, _UTF8 = 1, 1 << 11  # bits of a member's flags


@dataclass(frozen=True)
class Zip(EncodedImages):
    """Images in one .zip.

    An open ZipFile takes 700 bytes a member and must not be shared by processes; for ImageNet each process would need
    12 seconds and a gigabyte. Therefore it is used only once, to find the positions of the members.
    """

    path: Path
    names: np.ndarray  # [N] bytes
    entries: np.ndarray  # [N] of _ENTRY

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{unpack(self.names[index])} in {self.path}"

    def data(self, index: int) -> bytes:
        entry = self.entries[index]
        with open(self.path, "rb") as file:
            _to_data(file, int(entry["header"]), int(entry["name"]))
            data = file.read(entry["size"])
        if entry["deflated"]:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # negative: without zlib's own header
            data = inflate.decompress(data, int(entry["whole"]) + 1)  # no more than was promised
        if zlib.crc32(data) != entry["crc"]:
            raise ValueError("its checksum is wrong; the zip has changed or is broken")
        return data


def read_zip(path: Path, left_out: LeftOut) -> Zip:
    """All images in a .zip; class = first folder inside, unless a dataset.json lists the labels.

    Raises:
        FastdiffError: a broken or encrypted zip, no images in it, or labels that do not fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            with open(path, "rb") as file:
                if (count := _promised(file)) != len(archive.infolist()):
                    found = len(archive.infolist())
                    raise ValueError(f"its directory ends after {found} of {count} members")
                members = _images(archive.infolist(), file, path, left_out)
            listing = archive.read(LISTING) if LISTING in archive.namelist() else None
    except FastdiffError:
        raise
    except Exception as error:  # a damaged directory makes zipfile fail in any way
        raise FastdiffError(f"cannot read {path}: {reason(error)}") from None
    if not members:
        raise FastdiffError(f"no images in {path}; looked for {', '.join(sorted(EXTENSIONS))}")
    members.sort(key=lambda m: m.filename.split("/"))  # as in a folder: the same data, the same order
    for member in members:
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS:
            raise FastdiffError(
                f"{member.filename} in {path} is encrypted or compressed in a rare way; unpack it and zip it anew"
            )
    names = [m.filename for m in members]
    if listing is None:
        labels, class_names = labels_by_folder(names, str(path))
    else:
        where = f"{LISTING} in {path}"
        labels, class_names = labels_by_listing(read_listing(listing, where), names, where), ()
    entries = [
        (
            m.header_offset,
            m.compress_size,
            m.file_size,
            m.CRC,
            _name(m),
            m.compress_type == zipfile.ZIP_DEFLATED,
        )
        for m in members
    ]
    return Zip(labels, class_names, path, pack(names), np.array(entries, _ENTRY))


def _images(
    members: list[zipfile.ZipInfo], file: IO[bytes], path: Path, left_out: LeftOut
) -> list[zipfile.ZipInfo]:
    """The members that are images. Others are checked by their own header, as a flipped bit could hide an image."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename
        if is_image(name) and not member.is_dir():
            if name in found:
                left_out.refuse(f"{path} has two images of the name {name}")
            found[name] = member
            continue
        try:
            _to_data(file, member.header_offset, _name(member))
        except ValueError as error:
            left_out.refuse(f"{path}: cannot read {name}: {error}")
        if not member.is_dir() and not is_hidden(name) and name != LISTING:
            left_out.count_file(name)
    return list(found.values())


def _promised(file: IO[bytes]) -> int:
    """How many members a zip says it has, in the record at its end (PKWARE APPNOTE 4.3.14, 4.3.16)."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_END))
    tail = file.read()
    (count,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
    if count < 0xFFFF:
        return count
    return struct.unpack_from("<Q", tail, tail.rfind(b"PK\6\6") + 32)[0]


def _name(member: zipfile.ZipInfo) -> int:
    """A checksum of a member's name as it is written."""
    return zlib.crc32(member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437"))


def _to_data(file: IO[bytes], offset: int, name: int) -> None:
    """Seek from a member's own header to its data, and check the directory, which has no checksum, by that header."""
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:4] != _SIGNATURE:
        raise ValueError("the zip has changed or is broken")
    _, name_length, extra_length = _HEADER.unpack(header)
    if zlib.crc32(file.read(name_length)) != name:
        raise ValueError("it has another name in the zip's directory; the zip has changed or is broken")
    file.seek(extra_length, 1)
