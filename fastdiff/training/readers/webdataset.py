"""webdataset shards: tar files whose members of one name, but for what follows its first dot, are one sample."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from tqdm import tqdm

from fastdiff.errors import FastdiffError
from fastdiff.training.readers.encoded import EXTENSIONS, EncodedImages, is_hidden, is_image, pack, unpack

_TAR = re.compile(r"\.(tar(\.\w+)?|t[bgx]z2?|tzst)$", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_ENTRY = np.dtype([("shard", "i4"), ("offset", "i8"), ("size", "i8")])


@dataclass(frozen=True)
class Shards(EncodedImages):
    """Images in tar files, reached at random by where they lie."""

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
    """The tar files that ``path`` means: itself, those in a folder, or those of a pattern with {000..146}.

    Raises:
        FastdiffError: a file of the pattern is missing; a folder that holds images beside tar files.
    """
    if path.is_dir():
        return _in_folder(path)
    if not _TAR.search(path.name):
        return []
    if path.exists() or not _RANGE.search(str(path)):
        return [path] if path.exists() else []
    paths = [Path(name) for name in _expand(str(path))]
    missing = [p for p in paths if not p.is_file()]
    if missing or not paths:
        raise FastdiffError(
            f"{path} names {len(paths)} shards, and {len(missing)} of them are missing"
            + (f", first {missing[0]}" if missing else "; the first number must be the smaller one")
        )
    return paths


def _in_folder(folder: Path) -> list[Path]:
    inside = sorted(p for p in folder.iterdir() if not is_hidden(p.name))
    shards = [p for p in inside if _TAR.search(p.name) and p.is_file()]
    other = next((p for p in inside if is_image(p.name) or p.is_dir()), None)
    if shards and other:
        raise FastdiffError(
            f"{folder} holds {shards[0].name} and {other.name}: shards or a folder of images? "
            "move one of them away, or give shards as a pattern such as 'train-{000..146}.tar'"
        )
    return shards


def _expand(pattern: str) -> list[str]:
    """As a shell does: 0s before the first number give all numbers its width."""
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


def read_shards(paths: Sequence[Path], *, progress: bool) -> Shards:
    """All samples with an image; labels from .cls (a whole number) or .json ({"label": number}).

    Raises:
        FastdiffError: a broken or compressed tar file, no images, or labels that do not fit.
    """
    samples: list[_Sample] = []
    total = sum(path.stat().st_size for path in paths)
    bar = {"unit": "B", "unit_scale": True, "disable": not progress, "delay": 1, "leave": False}
    with tqdm(desc="looking through shards", total=total, **bar) as read:
        for number, path in enumerate(paths):
            _refuse_compressed(path)
            try:
                samples += _samples(path, number, read)
            except (OSError, tarfile.TarError) as error:
                raise FastdiffError(f"cannot read {path}: {error}") from None
    if not samples:
        raise FastdiffError(f"no images in {paths[0]}{' and the other shards' if len(paths) > 1 else ''}")
    entries = np.array([(s.shard, s.offset, s.size) for s in samples], _ENTRY)
    return Shards(_labels(samples, paths), (), tuple(paths), pack([s.image for s in samples]), entries)


def _samples(path: Path, number: int, read: tqdm) -> list[_Sample]:
    """The samples of one shard, in the order of their images."""
    images: dict[str, _Sample] = {}
    labels: dict[str, int | None] = {}
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (a large shard's would pile up)
            read.update(member.offset_data - member.offset + member.size)
            key, extension = _split(member.name)
            if not member.isreg() or is_hidden(member.name):
                continue
            if f".{extension}" in EXTENSIONS:
                if key in images:
                    raise FastdiffError(
                        f"{path} has two images of {key}: {images[key].image} and {member.name}"
                    )
                images[key] = _Sample(key, number, member.name, member.offset_data, member.size)
            elif extension in ("cls", "json") and labels.get(key) is None:
                labels[key] = _label(tar.extractfile(member), extension, f"{member.name} in {path}")
    return [sample._replace(label=labels.get(key)) for key, sample in images.items()]


def _labels(samples: list[_Sample], paths: Sequence[Path]) -> np.ndarray | None:
    missing = [s for s in samples if s.label is None]
    if not missing:
        return np.array([s.label for s in samples])
    if len(missing) < len(samples):
        first = missing[0]
        raise FastdiffError(
            f"{first.key} in {paths[first.shard]} has no label, no .cls or .json, though others have"
        )
    return None


def _split(name: str) -> tuple[str, str]:
    """Key and extension: what precedes and follows the first dot of the name's last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _label(file: IO[bytes] | None, extension: str, name: str) -> int | None:
    """None where a .json has no "label"."""
    text = b"" if file is None else file.read()
    try:
        if extension == "cls":
            return int(text)
        label = json.loads(text).get("label")
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
