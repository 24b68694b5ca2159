"""Images in .zip files and webdataset shards."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data.images import ImageData, load_data
from fastdiff.errors import FastdiffError


def load(path: Path, **options: Any) -> ImageData:
    return load_data(path, **{"image_size": 8, "channels": 1, "num_classes": 3, **options})


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (12, 10), shade).save(file, "PNG")
    return file.getvalue()


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def shades(data: ImageData) -> list[int]:
    return data.fetch(torch.arange(len(data)))[:, 0, 0, 0].tolist()


PICTURES = {"owl/a.png": png(30), "cat/deep/b.png": png(10), "dog/c.png": png(20)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_the_folder_that_it_was_made_of(tmp_path: Path, method: int) -> None:
    hidden = {"__MACOSX/owl/._a.png": b"", "owl/._a.png": b"", "notes.txt": b"no image"}
    zipped = load(write_zip(tmp_path / "data.zip", {**PICTURES, **hidden}, method))
    for name, content in PICTURES.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(content)
    folder = load(tmp_path / "data")
    assert zipped.class_names == folder.class_names == ("cat", "dog", "owl")
    assert zipped.labels is not None and folder.labels is not None
    assert zipped.labels.tolist() == folder.labels.tolist() == [0, 1, 2]
    order = torch.tensor([2, 0, 2, 1])
    assert torch.equal(zipped.fetch(order), folder.fetch(order))
    assert shades(zipped) == [10, 20, 30] and not zipped.in_memory


def test_zip_of_stylegan_and_edm(tmp_path: Path) -> None:
    names = [f"0000{i // 2}/img{i:08d}.png" for i in range(4)]
    pictures = {name: png(i) for i, name in enumerate(names)}
    labels = [[name, 2 - i % 3] for i, name in enumerate(names)]
    listed = {"dataset.json": json.dumps({"labels": labels[::-1]}).encode()}
    data = load(write_zip(tmp_path / "edm.zip", {**pictures, **listed}))
    assert data.labels is not None and data.labels.tolist() == [2, 1, 0, 2]
    assert shades(data) == [0, 1, 2, 3] and data.class_names == ()
    unlabelled = write_zip(tmp_path / "u.zip", {**pictures, "dataset.json": b'{"labels": null}'})
    assert load(unlabelled, num_classes=None).labels is None


SAMPLES = [
    [("0.png", png(0)), ("0.cls", b"2\n"), ("1.cls", b"1"), ("1.png", png(1))],
    [("./x/2.PNG", png(2)), ("./x/2.json", b'{"label": 0}'), ("./x/2.seg.png", png(99)), ("./._2.png", b"")],
]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with two shards."""
    (tmp_path / "shards").mkdir()
    for number, members in enumerate(SAMPLES):
        write_tar(tmp_path / "shards" / f"train-{number + 9:04d}.tar", members)
    return tmp_path / "shards"


@pytest.mark.parametrize("name", [".", "train-{0009..0010}.tar", "{train}-{0009..0010}.tar"])
def test_shards(shards: Path, name: str) -> None:
    if "{train}" in name:  # braces that are no range belong to the name
        for file in list(shards.iterdir()):
            file.rename(shards / file.name.replace("train", "{train}"))
    data = load(shards / name)
    assert data.labels is not None and data.labels.tolist() == [2, 1, 0]
    assert shades(data) == [0, 1, 2] and not data.in_memory
    assert data.fetch(torch.tensor([2, 0]))[:, 0, 0, 0].tolist() == [2, 0]


def test_one_shard_and_widths_of_ranges(shards: Path) -> None:
    assert shades(load(shards / "train-0009.tar")) == [0, 1]
    for number in (9, 10):
        (shards / f"train-{number:04d}.tar").rename(shards / f"s{number}.tar")
    assert len(load(shards / "s{9..10}.tar")) == 3
    (shards / "s9.tar").rename(shards / "s09.tar")
    assert len(load(shards / "s{0..0}{9..9}.tar")) == 2
    assert len(load(shards / "s{09..10}.tar")) == 3


def test_shards_without_labels(tmp_path: Path) -> None:
    samples = [
        ("a.jpg", png(1)),
        ("a.json", b'{"caption": "a cat"}'),
        ("b.webp", png(2)),
        ("b.txt", b"a dog"),
    ]
    path = write_tar(tmp_path / "x.tar", samples)
    data = load(path, num_classes=None)
    assert data.labels is None and shades(data) == [1, 2]
    with pytest.raises(FastdiffError, match="has no labels"):
        load(path)


A = ("a.png", png(1))


def _cut(path: Path, end: int) -> Path:
    path.write_bytes(path.read_bytes()[:end])
    return path


def _gzipped(path: Path) -> Path:
    path.write_bytes(gzip.compress(b"tar"))
    return path


def _encrypted(tmp_path: Path) -> Path:
    path = write_zip(tmp_path / "x.zip", {"a/x.png": png(1)})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    return path


def _beside(tmp_path: Path) -> Path:
    """As archives look after they were unpacked."""
    (tmp_path / "n01").mkdir()
    return write_tar(tmp_path / "n01.tar", [A]).parent


def _tar(tmp_path: Path, *members: tuple[str, bytes]) -> Path:
    return write_tar(tmp_path / "x.tar", list(members))


BAD = {
    "zip-text": (lambda p: _gzipped(p / "x.zip"), "cannot read .*x.zip: File is not a zip file"),
    "zip-cut": (lambda p: _cut(write_zip(p / "x.zip", PICTURES), 100), "cannot read .*x.zip"),
    "zip-empty": (lambda p: write_zip(p / "x.zip", {"a.txt": b""}), "no images in .*x.zip; looked for"),
    "zip-encrypted": (_encrypted, "a/x.png in .*x.zip is encrypted"),
    "zip-bzip2": (lambda p: write_zip(p / "x.zip", PICTURES, zipfile.ZIP_BZIP2), "in a rare way; unpack"),
    "zip-stray": (lambda p: write_zip(p / "x.zip", {**PICTURES, "x.png": b""}), "x.png in .* lies beside"),
    "zip-listing": (
        lambda p: write_zip(p / "x.zip", {**PICTURES, "dataset.json": b"[]"}),
        "dataset.json in .*",
    ),
    "zip-classes": (
        lambda p: write_zip(p / "x.zip", {**PICTURES, "ape/a.png": b"text"}),
        "4 class names for 3 classes",
    ),
    "zip-picture": (
        lambda p: write_zip(p / "x.zip", {**PICTURES, "cat/a.png": b"text"}),
        "cannot read the image cat/a.png in .*x.zip: it is not a picture",
    ),
    "tar-missing": (lambda p: p / "x.tar", "no data at"),
    "tar-shard-missing": (
        lambda p: write_tar(p / "x0.tar", [A]).with_name("x{0..2}.tar"),
        "3 shards, and 2 of them are missing, first .*x1.tar",
    ),
    "tar-range": (lambda p: p / "x{2..0}.tar", "0 shards.* first number must be the smaller"),
    "tar-gz": (lambda p: _gzipped(p / "x.tar.gz"), "x.tar.gz is compressed.*; run gunzip on it first"),
    "tar-gz-in-disguise": (lambda p: _gzipped(p / "x.tar"), "run gunzip on it first"),
    "tgz-in-folder": (lambda p: _gzipped(p / "x.tgz").parent, "run gunzip on it first"),
    "tar-beside-images": (_beside, "holds n01.tar and n01: shards or a folder of images"),
    "tar-0-bytes": (lambda p: _cut(_tar(p, A), 0), "x.tar is empty; --skip-broken leaves it out"),
    "tar-cut": (lambda p: _cut(_tar(p, A, ("b.png", png(2))), 560), "byte 0: a.png is cut short; --skip"),
    "tar-text": (lambda p: _cut(write_zip(p / "x.tar", PICTURES), 900), "x.tar is damaged at byte 0: "),
    "tar-no-images": (lambda p: _tar(p, ("a.cls", b"1")), "no images in .*x.tar"),
    "tar-two-images": (lambda p: _tar(p, A, ("a.jpg", png(1))), "two images of a: a.png and a.jpg"),
    "tar-no-label": (lambda p: _tar(p, A, ("b.png", png(1)), ("b.cls", b"1")), "a in .*x.tar has no label"),
    "tar-cls": (
        lambda p: _tar(p, A, ("a.cls", b"cat")),
        "a.cls in .*x.tar must hold a whole number, got b'cat'",
    ),
    "tar-json": (lambda p: _tar(p, A, ("a.json", b'{"label": "cat"}')), "a.json in .* must hold {.label.: a"),
    "tar-json-list": (lambda p: _tar(p, A, ("a.json", b"[1]")), "a.json in .* must hold"),
    "tar-label-range": (lambda p: _tar(p, A, ("a.cls", b"3")), "label 3 in .*x.tar is out of range"),
    "tar-picture": (
        lambda p: _tar(p, ("a.png", b"text"), ("a.cls", b"1")),
        "image a.png in .*x.tar: it is not",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archive_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    make, sentence = BAD[name]
    with pytest.raises(FastdiffError, match=sentence) as told:
        load(make(tmp_path))
    assert "\n" not in str(told.value)


def test_labels_do_not_go_with_archives(shards: Path) -> None:
    for path in (shards, write_zip(shards.parent / "x.zip", PICTURES)):
        with pytest.raises(FastdiffError, match="carries its own"):
            load(path, labels=path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(b"IDAT", b"IDXT"), "its checksum is wrong"),
        (lambda data: data[:20], "has changed or is broken"),
        (lambda data: b"0" * len(data), "has changed or is broken"),
    ],
)
def test_zip_that_changes_while_training(tmp_path: Path, change: Any, reason: str) -> None:
    path = write_zip(tmp_path / "x.zip", PICTURES)
    data = load(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FastdiffError, match=f"cannot read the image dog/c.png in {path}: .*{reason}"):
        data.fetch(torch.tensor([1]))


def test_deflated_bytes_that_are_broken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "BMP")
    path = write_zip(tmp_path / "x.zip", {"a.png": png(0), "b.bmp": file.getvalue()}, zipfile.ZIP_DEFLATED)
    data = load(path, num_classes=None)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(FastdiffError, match="cannot read the image b.bmp in"):
        data.fetch(torch.tensor([1]))


def test_shard_that_is_cut_while_training(shards: Path) -> None:
    data = load(shards)
    _cut(shards / "train-0010.tar", 530)
    with pytest.raises(FastdiffError, match="x/2.PNG in .*train-0010.tar: the tar file is cut short"):
        data.fetch(torch.tensor([2]))
