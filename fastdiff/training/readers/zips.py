"""A .zip of image files."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdiff.errors import FastdiffError
from fastdiff.training.readers.encoded import EncodedImages, pack, unpack
from fastdiff.training.readers.labels import LISTING, labels_by_folder, labels_by_listing, read_listing
from fastdiff.training.readers.left_out import LeftOut
from fastdiff.training.readers.pictures import EXTENSIONS, is_hidden, is_image

_SIGNATURE = b"PK\3\4"
_HEADER = struct.Struct("<4s22xHH")  # before each member: signature, lengths of its name and extra field
_ENTRY = np.dtype([("header", "i8"), ("size", "i8"), ("whole", "i8"), ("crc", "u4"), ("deflated", "?")])
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1  # bit of a member's flags


@dataclass(frozen=True)
class Zip(EncodedImages):
    """Images in one .zip.

    An open ZipFile takes 700 bytes a member and must not be shared by processes; ImageNet would take each of them
    12 seconds and a gigabyte. So it is used once, to learn where the members lie.
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
            file.seek(entry["header"])
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or header[:4] != _SIGNATURE:
                raise ValueError("the zip has changed or is broken")
            file.seek(sum(_HEADER.unpack(header)[1:]), 1)
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
            members = _images(archive.infolist(), path, left_out)
            listing = archive.read(LISTING) if LISTING in archive.namelist() else None
    except FastdiffError:
        raise
    except Exception as error:  # a damaged directory makes zipfile fail in any way
        raise FastdiffError(f"cannot read {path}: {error}") from None
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
        (m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type == zipfile.ZIP_DEFLATED)
        for m in members
    ]
    return Zip(labels, class_names, path, pack(names), np.array(entries, _ENTRY))


def _images(members: list[zipfile.ZipInfo], path: Path, left_out: LeftOut) -> list[zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename
        if member.is_dir() or is_hidden(name) or name == LISTING:
            continue
        if not is_image(name):
            left_out.count_file(name)
        elif stat.S_ISLNK(member.external_attr >> 16):
            left_out.count("links in a zip")
        else:
            if name in found:
                left_out.refuse(f"{path} has two images of the name {name}")
            found[name] = member
    return list(found.values())
