"""Random folders with every kind of link and of file: each image once under its one label, or one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mutate import numbered, one_sentence, rounds
from PIL import Image

from fastdiff.data.readers import Folder, read

FOLDERS = ("cat", "dog", "cat/x", "cat/y", "dog/x", "dog/x/z", ".hidden", "../outside", "../outside/in")
NAMES = ("0.png", "1.PNG", "a\nb.png", "é.png", "2.txt", ".3.png", "4", "5.heic", "\udcff.png")


def grow(root: Path, rng: np.random.Generator) -> None:
    """A tree with up to twelve pictures, each of another shade, and links between its places."""
    root.mkdir(parents=True)
    folders = [root / name for name in FOLDERS if rng.random() < 0.7]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    places = folders or [root]

    def place(name: str) -> Path:
        return places[int(rng.integers(len(places)))] / name

    def name() -> str:
        return NAMES[int(rng.integers(len(NAMES)))]

    for shade in range(int(rng.integers(1, 12))):
        path = place(name())
        Image.new("L", (4, 4), shade).save(path, "PNG")
    existing = [path for top in (root, root.parent / "outside") for path in top.rglob("*")]
    for number in range(int(rng.integers(0, 4))):
        path, kind = place(f"link{number}{rng.choice(['', '.png', '.d'])}"), rng.random()
        target = existing[int(rng.integers(len(existing)))] if existing else root
        if kind < 0.7:
            path.symlink_to(target if rng.random() < 0.5 else os.path.relpath(target, path.parent))
        elif kind < 0.8 and target.is_file():
            os.link(target, path)
        elif kind < 0.85:
            path.symlink_to(root)
        elif kind < 0.9:
            path.symlink_to("nowhere")
        elif kind < 0.95:
            os.mkfifo(path)


def truth(root: Path) -> tuple[dict[tuple[int, int], set[str | None]], bool]:
    """By file (device and inode): the labels of all names that lead to it; and whether a picture's link is broken.

    Found by walking along every path that does not pass a folder twice, which takes exponential time.
    """
    labels: dict[tuple[int, int], set[str | None]] = {}
    broken = False

    def walk(folder: Path, inside: str, passed: frozenset[str]) -> None:
        nonlocal broken
        for entry in sorted(os.listdir(folder)):
            path, name = folder / entry, f"{inside}/{entry}" if inside else entry
            if entry.startswith("."):
                continue
            if path.is_dir():
                real = os.path.realpath(path)
                if real not in passed:
                    walk(path, name, passed | {real})
            elif os.path.splitext(entry)[1].lower() == ".png":
                if path.is_file():
                    status = path.stat()
                    label = name.partition("/")[0] if "/" in name else None
                    labels.setdefault((status.st_dev, status.st_ino), set()).add(label)
                elif path.is_symlink() and not path.exists():
                    broken = True

    walk(root, "", frozenset({os.path.realpath(root)}))
    return labels, broken


@pytest.mark.parametrize("skip_broken", [False, True])
def test_trees(tmp_path: Path, skip_broken: bool) -> None:
    outcomes: dict[str, int] = {}
    for number in rounds(50):
        home = tmp_path / "home"
        grow(root := home / "data", numbered(number))
        expected, broken = truth(root)
        several = any(len(labels) > 1 for labels in expected.values())
        found = None
        with one_sentence() as said:
            found = read(root, skip_broken=skip_broken)
        if said:
            message = str(said[0])
            kind = next(k for k in KINDS if k in message)
            assert KINDS[kind](expected, several, broken and not skip_broken), (number, message)
        else:
            kind = "read"
            assert isinstance(found, Folder) and not several and (skip_broken or not broken), number
            check(found, expected)
        outcomes[kind] = outcomes.get(kind, 0) + 1
        shutil.rmtree(home)
    assert outcomes["read"] > 0.2 * len(rounds(50)) and len(outcomes) > 2, outcomes


# What may be said, and when.
KINDS = {
    "two labels": lambda expected, several, broken: several,
    "no images": lambda expected, several, broken: not expected,
    "lies beside the class folders": lambda expected, several, broken: (
        len(labels := set().union(*expected.values())) > 1 and None in labels
    ),
    "leads nowhere": lambda expected, several, broken: broken,
    "cannot read": lambda expected, several, broken: broken,  # a link to itself
}


def check(found: Folder, expected: dict[tuple[int, int], set[str | None]]) -> None:
    paths = [Path(found.name(i)) for i in range(len(found))]
    numbers = [(status.st_dev, status.st_ino) for status in map(os.stat, paths)]
    assert len(set(numbers)) == len(numbers) and set(numbers) == expected.keys()
    for i, number in enumerate(numbers):
        (label,) = expected[number]
        assert label == (None if found.labels is None else found.class_names[found.labels[i]])
        found.image(i)
