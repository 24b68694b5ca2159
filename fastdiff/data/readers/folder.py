"""A folder of image files, each of them once whatever links there are."""

from __future__ import annotations

import os
import stat
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastdiff.data.readers.encoded import EncodedImages, pack, unpack
from fastdiff.data.readers.labels import LISTING, labels_by_folder, labels_by_listing, read_listing
from fastdiff.data.readers.left_out import LeftOut
from fastdiff.data.readers.pictures import EXTENSIONS, is_hidden, is_image
from fastdiff.errors import FastdiffError

_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}


@dataclass(frozen=True)
class Folder(EncodedImages):
    """Image files under ``root``."""

    root: Path
    names: np.ndarray  # [N] bytes, relative to root

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return str(self.root / unpack(self.names[index]))

    def data(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()


def read_folder(root: Path, left_out: LeftOut, *, progress: bool) -> Folder:
    """All images under ``root``; class = subfolder, unless a dataset.json lists the labels.

    Raises:
        FastdiffError: no images, labels that do not fit, an image under two labels, a folder that cannot be read.
    """
    listing = root / LISTING
    listed = None
    if listing.is_file():
        try:
            listed = read_listing(listing.read_bytes(), str(listing))
        except OSError as error:
            raise FastdiffError(f"cannot read {listing}: {error.strerror}") from None
    with tqdm(desc=f"looking through {root}", unit="img", disable=not progress, delay=1, leave=False) as bar:
        walk = _Walk(root, left_out, bar)
        walk.run()
    names = walk.names(listed or {}, by_folder=not listing.is_file())
    if not names:
        raise FastdiffError(f"no images under {root}; looked for {', '.join(sorted(EXTENSIONS))}")
    if listing.is_file():
        return Folder(labels_by_listing(listed, names, str(listing)), (), root, pack(names))
    return Folder(*labels_by_folder(names, str(root)), root, pack(names))


class _Walk:
    """A walk through a folder and its subfolders, real folders before links to folders, each folder once."""

    def __init__(self, root: Path, left_out: LeftOut, bar: tqdm) -> None:
        self._root, self._left_out, self._bar = root, left_out, bar
        self._names: list[str] = []  # relative to root
        self._numbers = array("Q")  # device and inode of each file, in turn
        self._folders: dict[tuple[int, int], str] = {}  # by device and inode
        self._aliases: list[tuple[str, str]] = []  # of a folder: another name, and the first

    def run(self) -> None:
        """Walk through all folders."""
        real, links = deque([""]), deque[str]()
        while real or links:
            name = (real or links).popleft()
            try:
                status = os.stat(self._root / name)
                first = self._folders.setdefault((status.st_dev, status.st_ino), name)
                if first != name and _same(self._root / name, self._root / first):
                    self._again(name, first)
                    continue
                with os.scandir(self._root / name) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._left_out.refuse(f"cannot read the folder {self._root / name}: {error.strerror}")
                continue
            for entry in inside:
                path = f"{name}/{entry.name}" if name else entry.name
                try:
                    is_folder = entry.is_dir()
                    if not is_folder:
                        self._file(entry, path, status.st_dev)
                except OSError as error:
                    self._left_out.refuse(f"cannot read {self._root / path}: {error.strerror}")
                    continue
                if is_folder and not is_hidden(entry.name):
                    (links if entry.is_symlink() else real).append(path)
            self._bar.update(len(self._names) - self._bar.n)

    def names(self, listed: Mapping[str, object], *, by_folder: bool) -> list[str]:
        """Names of the image files, each file once, ordered by folder.

        Args:
            listed: names that have a label; of a file with several names, the listed name is kept.
            by_folder: True if the first folder of a name is its label.

        Raises:
            FastdiffError: one image under two labels.
        """
        for other, first in self._aliases:
            below = (name for name in self._names if name.startswith(f"{first}/"))
            apart = other.partition("/")[0] != first.partition("/")[0]
            if by_folder and apart and (image := next(below, None)):
                raise FastdiffError(_two_labels(self._root, image, other + image.removeprefix(first)))
        dropped = set()
        for first, again in self._doubles():
            names = self._names[first], self._names[again]
            labels = [_class(name) if by_folder else listed.get(name) for name in names]
            if labels[0] != labels[1] and (by_folder or None not in labels):
                raise FastdiffError(_two_labels(self._root, *names))
            dropped.add(first if not by_folder and labels[0] is None else again)
            self._left_out.count("links to images that are there already")
        kept = (name for i, name in enumerate(self._names) if i not in dropped)
        return sorted(kept, key=lambda name: name.split("/"))

    def _file(self, entry: os.DirEntry[str], name: str, device: int) -> None:
        """Record a path that is no folder."""
        if is_hidden(entry.name) or name == LISTING:
            return
        if entry.is_file():
            if not is_image(entry.name):
                self._left_out.count_file(entry.name)
                return
            self._names.append(name)
            status = entry.stat() if entry.is_symlink() else None
            self._numbers.extend((status.st_dev, status.st_ino) if status else (device, entry.inode()))
        elif entry.is_symlink() and not os.path.exists(entry.path):
            if is_image(entry.name):
                self._left_out.refuse(f"{entry.path} is a link that leads nowhere")
            else:
                self._left_out.count("links that lead nowhere")
        else:
            self._left_out.count(_KINDS.get(stat.S_IFMT(entry.stat().st_mode), "special file"))

    def _again(self, name: str, first: str) -> None:
        """A folder was reached a second time."""
        above = os.path.realpath(os.path.dirname(self._root / name))
        target = os.path.realpath(self._root / first)
        if os.path.commonpath([above, target]) == target:
            self._left_out.count("links to a folder above them")
            return
        self._left_out.count("links to folders that are there already")
        self._aliases.append((name, first))

    def _doubles(self) -> Iterator[tuple[int, int]]:
        """Pairs of positions of two names of the same file, in order."""
        numbers = np.frombuffer(self._numbers, np.uint64).reshape(-1, 2)
        order = np.lexsort(numbers.T)  # stable: the first name stays the first
        same = (numbers[order[1:]] == numbers[order[:-1]]).all(axis=1)
        first = -1
        for i in np.flatnonzero(same):
            if i == 0 or not same[i - 1]:
                first = int(order[i])
            again = int(order[i + 1])
            if _same(self._root / self._names[first], self._root / self._names[again]):
                yield first, again


def _same(one: Path, other: Path) -> bool:
    """True if two names with the same inode are the same file. Some network file systems have no true inodes."""
    return os.path.realpath(one) == os.path.realpath(other) or os.stat(one).st_nlink > 1


def _class(name: str) -> str | None:
    return name.partition("/")[0] if "/" in name else None


def _two_labels(root: Path, one: str, other: str) -> str:
    return f"{one} and {other} in {root} are one image under two labels; remove one of the two"
