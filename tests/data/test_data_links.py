"""Folders with links, and with things that are no images: each image once, under one label, and nothing lost."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastdiff.data.images import ImageData, load_data
from fastdiff.errors import FastdiffError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """cat/0.png, cat/deep/1.png, dog/2.png; beside it other/3.png."""
    for shade, name in enumerate(("cat/0", "cat/deep/1", "dog/2", "../other/3")):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade).save(path)
    return tmp_path / "data"


def load(root: Path, num_classes: int | None = 2, **options: bool) -> ImageData:
    return load_data(root, image_size=8, channels=1, num_classes=num_classes, **options)


def shades(data: ImageData) -> list[int]:
    return data.fetch(torch.arange(len(data)))[:, 0, 0, 0].tolist()


def test_links_are_followed_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "here").symlink_to(".")
    (root / "cat" / "again").symlink_to(root / "cat" / "deep")
    (root / "cat" / "same.png").symlink_to("0.png")
    os.link(root / "cat" / "0.png", root / "cat" / "hard.png")
    (root / "dog" / "far").symlink_to(root.parent / "other")
    with caplog.at_level(logging.WARNING):
        data = load(root)
    assert shades(data) == [0, 1, 2, 3] and data.class_names == ("cat", "dog")
    assert data.labels is not None and data.labels.tolist() == [0, 0, 1, 1]
    assert f"{root}: left out 2 links to a folder above them, 1 links to folders" in caplog.text
    assert "2 links to images that are there already" in caplog.text


def test_a_linked_class_counts_once(root: Path) -> None:
    """Links alone, as subsets of a data set are made."""
    subset = root.parent / "subset"
    subset.mkdir()
    (subset / "feline").symlink_to(root / "cat")
    (subset / "canine").mkdir()
    (subset / "canine" / "x.png").symlink_to(root / "dog" / "2.png")
    data = load(subset)
    assert shades(data) == [2, 0, 1] and data.class_names == ("canine", "feline")


@pytest.mark.parametrize("kind", ["file", "hard", "folder", "deep"])
def test_one_image_under_two_labels(root: Path, kind: str) -> None:
    if kind == "file":
        (root / "dog" / "x.png").symlink_to(root / "cat" / "0.png")
    elif kind == "hard":
        os.link(root / "cat" / "0.png", root / "dog" / "x.png")
    elif kind == "folder":
        (root / "puma").symlink_to("cat")
    else:
        (root / "dog" / "x").symlink_to(root / "cat" / "deep")
    with pytest.raises(FastdiffError, match="are one image under two labels; remove one of the two"):
        load(root)


def test_listed_labels_decide(root: Path) -> None:
    (root / "x.png").symlink_to("cat/0.png")
    listing = [["cat/deep/1.png", 0], ["dog/2.png", 1], ["x.png", 1]]
    (root / "dataset.json").write_text(json.dumps({"labels": listing}))
    data = load(root)
    assert data.labels is not None and data.labels.tolist() == [0, 1, 1] and shades(data) == [1, 2, 0]
    (root / "dataset.json").write_text(json.dumps({"labels": [["cat/0.png", 0], *listing]}))
    with pytest.raises(FastdiffError, match="two labels"):
        load(root)


def test_what_is_no_image_is_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Above all nothing waits for a FIFO."""
    os.mkfifo(root / "cat" / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "cat" / "s.png"))
    for name in ("a.txt", "b.TXT", "c.heic", "noextension", ".hidden.png"):
        (root / "dog" / name).touch()
    (root / "dog" / "away").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING):
        assert shades(load(root)) == [0, 1, 2]
    counts = "1 .heic, 2 .txt, 1 FIFO, 1 links that lead nowhere, 1 socket, 1 without an extension"
    assert f"{root}: left out {counts}" in caplog.text


def test_only_one_process_of_a_run_says_so(root: Path, caplog, monkeypatch) -> None:
    (root / "dog" / "a.txt").touch()
    monkeypatch.setenv("RANK", "1")
    load(root)
    assert not caplog.records


def test_a_link_that_leads_nowhere(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "dog" / "9.png").symlink_to("nowhere.png")
    (root / "dog" / "8.png").symlink_to("8.png")
    with pytest.raises(FastdiffError, match=r"8.png.*--skip-broken leaves it out"):
        load(root)
    assert shades(load(root, skip_broken=True)) == [0, 1, 2]
    assert "left out 2 that cannot be read" in caplog.text and "9.png is a link that leads" in caplog.text


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path):  # to root every folder is readable
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        FastdiffError, match="cannot read the folder .*deep: Permission denied; --skip-broken"
    ):
        load(root)
    assert shades(load(root, skip_broken=True)) == [0, 2]


def test_broken_pictures_are_left_out_if_asked(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "dog" / "1.png").write_bytes((root / "dog" / "2.png").read_bytes()[:50])
    with pytest.raises(FastdiffError, match="cannot read the image .*dog/1.png"):
        shades(load(root))
    data = load(root, skip_broken=True)
    assert shades(data) == [0, 1, 2] and data.labels is not None and data.labels.tolist() == [0, 0, 1]
    assert "left out 1 that cannot be read" in caplog.text and "dog/1.png" in caplog.text


@pytest.mark.parametrize("name", ["data.png", "data.npz", "data.zip", "data.tar"])
def test_a_fifo_is_no_data(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FastdiffError, match="which is a FIFO, a socket or a device"):
        load(tmp_path / name)
