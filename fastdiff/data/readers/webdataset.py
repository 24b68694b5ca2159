"""webdataset shards: tar files in which members with the same name up to the first dot form one sample."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from fastdiff.data.readers.encoded import EncodedImages, pack, unpack
from fastdiff.data.readers.left_out import LeftOut
from fastdiff.data.readers.pictures import EXTENSIONS, is_hidden, is_image
from fastdiff.data.readers.tar import members
from fastdiff.errors import FastdiffError, reason
from fastdiff.files import parse_json

_TAR = re.compile(r"\.(tar(\.\w+)?|t[bgx]z2?|tzst)$", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_LONGEST_LABEL = 1 << 24  # bytes of a .cls or .json
_ENTRY = np.dtype([("shard", "i4"), ("offset", "i8"), ("size", "i8")])


@dataclass(frozen=True)
class Shards(EncodedImages):
    """Images in tar files, with random access by their offsets."""

    paths: tuple[Path, ...]
    names: np.ndarray  # [N] bytes
    entries: np.ndarray  # [N] of _ENTRY

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{unpack(self.names[index])} in {self.paths[self.entries[index]['shard']]}"

    def data(self, index: int) -> bytes:
        entry = self.entries[index]
        with open(self.paths[entry["shard"]], "rb") as file:
            file.seek(entry["offset"])
            data = file.read(entry["size"])
        if len(data) < entry["size"]:
            raise ValueError("the tar file is cut short")
        return data


def find_shards(path: Path) -> list[Path]:
    """The tar files at ``path``: a single file, those in a folder, or those of a pattern with {000..146}.

    Raises:
        FastdiffError: a file of the pattern is missing; a folder that holds images beside tar files.
    """
    if path.is_dir():
        return _in_folder(path)
    if not _TAR.search(path.name):
        return []
    if path.exists() or not _RANGE.search(str(path)):
        return [path] if path.is_file() else []
    paths = [Path(name) for name in _expand(str(path))]
    missing = [p for p in paths if not p.is_file()]
    if missing or not paths:
        raise FastdiffError(
            f"{path} names {len(paths)} shards, and {len(missing)} of them are missing"
            + (f", first {missing[0]}" if missing else "; the first number must be the smaller one")
        )
    return paths


def _in_folder(folder: Path) -> list[Path]:
    try:
        inside = sorted(p for p in folder.iterdir() if not is_hidden(p.name))
    except OSError as error:
        raise FastdiffError(f"cannot read the folder {folder}: {error.strerror}") from None
    shards = [p for p in inside if _TAR.search(p.name) and not p.is_dir()]
    other = next((p for p in inside if is_image(p.name) or p.is_dir()), None)
    if shards and other:
        raise FastdiffError(
            f"{folder} holds {shards[0].name} and {other.name}: shards or a folder of images? "
            "move one of them away, or give shards as a pattern such as 'train-{000..146}.tar'"
        )
    unusable = next((p for p in shards if not p.is_file()), None)
    if unusable:
        raise FastdiffError(f"{unusable} is no file that can be read: a link that leads nowhere, or a device")
    return list(
        {(status.st_dev, status.st_ino): p for p in reversed(shards) for status in [p.stat()]}.values()
    )[::-1]


def _expand(pattern: str) -> list[str]:
    """Expand the pattern as a shell does: leading zeros of the first number give all numbers its width."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    width = len(first) if first.startswith("0") else 0
    numbers = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    return [
        name
        for number in numbers
        for name in _expand(f"{pattern[: match.start()]}{number}{pattern[match.end() :]}")
    ]


class _Sample(NamedTuple):
    key: str
    shard: int
    image: str
    offset: int
    size: int
    label: int | None = None


def read_shards(paths: Sequence[Path], left_out: LeftOut, *, progress: bool) -> Shards:
    """All samples with an image; labels from .cls (a whole number) or .json ({"label": number}).

    Raises:
        FastdiffError: a compressed tar file, or one in which bytes belong to no member; no images, or labels that do
            not fit.
    """
    samples: list[_Sample] = []
    total = sum(path.stat().st_size for path in paths)
    bar = {"unit": "B", "unit_scale": True, "disable": not progress, "delay": 1, "leave": False}
    with tqdm(desc="looking through shards", total=total, **bar) as read:
        for number, path in enumerate(paths):
            _refuse_compressed(path)
            try:
                samples += _samples(path, number, left_out)
            except OSError as error:
                raise FastdiffError(f"cannot read {path}: {reason(error)}") from None
            read.update(path.stat().st_size)
    if not samples:
        raise FastdiffError(f"no images in {paths[0]}{' and the other shards' if len(paths) > 1 else ''}")
    samples = _alike(samples, paths, left_out)
    entries = np.array([(s.shard, s.offset, s.size) for s in samples], _ENTRY)
    return Shards(_labels(samples, paths[0]), (), tuple(paths), pack([s.image for s in samples]), entries)


def _samples(path: Path, number: int, left_out: LeftOut) -> list[_Sample]:
    """The samples of one shard, in the order of their images."""
    images: dict[str, _Sample] = {}
    labels: dict[str, int] = {}
    with open(path, "rb") as file:
        for member in members(file, path, left_out):
            key, extension = _split(member.name)
            if member.isdir() or is_hidden(member.name):
                continue
            if not member.isreg():
                left_out.count("links in shards" if member.issym() or member.islnk() else "special files")
            elif f".{extension}" in EXTENSIONS:
                if key in images:
                    raise FastdiffError(
                        f"{path} has two images of {key}: {images[key].image} and {member.name}"
                    )
                images[key] = _Sample(key, number, member.name, member.offset_data, member.size)
            elif extension in ("cls", "json"):
                label = _label(file, member, extension, f"{member.name} in {path}")
                if label is not None and labels.setdefault(key, label) != label:
                    raise FastdiffError(f"{path} has two labels for {key}: {labels[key]} and {label}")
            else:
                left_out.count_file(member.name)
    if alone := len(labels.keys() - images.keys()):
        left_out.kinds["labels without an image"] += alone
    return [sample._replace(label=labels.get(key)) for key, sample in images.items()]


def _alike(samples: list[_Sample], paths: Sequence[Path], left_out: LeftOut) -> list[_Sample]:
    """All samples if none has a label, else those that have one."""
    if all(s.label is None for s in samples):
        return samples
    for s in samples:
        if s.label is None:
            where = paths[s.shard]
            left_out.refuse(f"{s.key} in {where} has no label, no .cls or .json, though others have")
    return [s for s in samples if s.label is not None]


def _labels(samples: list[_Sample], path: Path) -> np.ndarray | None:
    if not samples or samples[0].label is None:
        return None
    try:
        return np.array([s.label for s in samples], np.int64)
    except OverflowError:
        raise FastdiffError(f"{path} has a label beyond 64 bits") from None


def _split(name: str) -> tuple[str, str]:
    """Key and extension: what precedes and follows the first dot of the name's last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _label(file: IO[bytes], member: tarfile.TarInfo, extension: str, name: str) -> int | None:
    """None where a .json has no "label"."""
    file.seek(member.offset_data)
    text = file.read(min(member.size, _LONGEST_LABEL))
    try:
        if extension == "cls":
            return int(text)
        label = parse_json(text).get("label")
        if label is None or type(label) is int:
            return label
    except (ValueError, AttributeError):
        pass
    form = "a whole number" if extension == "cls" else '{"label": a whole number}'
    raise FastdiffError(f"{name} must hold {form}, got {text[:40]!r}")


def _refuse_compressed(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(6)
    except OSError as error:
        raise FastdiffError(f"cannot read {path}: {error.strerror}") from None
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            raise FastdiffError(
                f"{path} is compressed, so that no image can be reached by itself; run {command} on it first"
            )
