"""Readers of image folders, IDX files and .npz files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data.images import load_data
from fastdiff.errors import FastdiffError

IMAGES = np.arange(3 * 6 * 6, dtype=np.uint8).reshape(3, 6, 6)
LABELS = np.array([2, 0, 1], np.uint8)


def write_idx(path: Path, array: np.ndarray) -> Path:
    data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def load(path: Path, **options):
    defaults = {"image_size": 8, "channels": 1, "num_classes": 3, "fit": "pad"}
    return load_data(path, **{**defaults, **options})


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_finds_its_labels_by_name(tmp_path: Path, suffix: str) -> None:
    images = write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", IMAGES)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", LABELS)
    data = load(images)
    assert data.images.shape == (3, 1, 8, 8) and data.images.dtype == torch.uint8
    np.testing.assert_array_equal(data.images[:, 0, 1:7, 1:7], IMAGES)  # centred on black
    assert data.images.sum() == IMAGES.sum()
    assert data.labels is not None and data.labels.tolist() == [2, 0, 1]


def test_idx_with_labels_given(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "pictures", IMAGES)
    labels = write_idx(tmp_path / "names", LABELS)
    assert load(images, labels=labels).labels is not None
    assert load(images, num_classes=None).labels is None


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
@pytest.mark.parametrize("channels", [1, 3])
def test_npz(tmp_path: Path, names: tuple[str, str], channels: int) -> None:
    colour = np.stack([IMAGES] * 3, axis=-1)
    np.savez(tmp_path / "data.npz", **{names[0]: colour, names[1]: LABELS.astype(np.int64)})
    data = load(tmp_path / "data.npz", channels=channels, class_names=("a", "b", "c"))
    assert data.images.shape == (3, channels, 8, 8)
    np.testing.assert_array_equal(data.images[:, 0, 1:7, 1:7], IMAGES)
    assert data.class_names == ("a", "b", "c")


def test_folder_classes_are_subfolders(tmp_path: Path) -> None:
    for number, name in enumerate(["dog", "cat", "owl"]):
        (tmp_path / name / "deep").mkdir(parents=True)
        Image.new("RGB", (10, 20), (number, number, number)).save(tmp_path / name / "deep" / "x.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load(tmp_path, fit="crop", channels=3)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2]
    assert data.fetch(torch.tensor([2, 0, 1]))[:, 0, 0, 0].tolist() == [2, 1, 0]


def test_folder_without_classes(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert load(tmp_path, num_classes=None).labels is None
    with pytest.raises(FastdiffError, match="has no labels"):
        load(tmp_path)


def test_folder_order_hidden_files_and_links(tmp_path: Path) -> None:
    """Folder by folder: "a-b" comes after "a", though "-" precedes "/". What macOS and editors hide does not count."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for number, name in enumerate(["a/x.png", "a/y.jpg", "a-b/x.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 50 * number).save(folder / name)
    for name in ("a/._x.png", ".cache/z.png", "__MACOSX/z.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    elsewhere.mkdir()
    Image.new("L", (8, 8), 200).save(elsewhere / "naïve \udcff.png")  # a name that is not UTF-8
    (folder / "z").symlink_to(elsewhere)
    data = load(folder)
    assert data.class_names == ("a", "a-b", "z") and data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 2]
    shades = data.fetch(torch.arange(4))[:, 0, 0, 0].tolist()
    assert shades == pytest.approx([0, 50, 100, 200], abs=2)


def test_folder_with_listing(tmp_path: Path) -> None:
    for name in ("00000/img0.png", "00000/img1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "dataset.json").write_text('{"labels": [["00000/img1.png", 2], ["00000/img0.png", 1]]}')
    labels = load(tmp_path).labels
    assert labels is not None and labels.tolist() == [1, 2]


def test_images_of_the_right_size_are_not_copied(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=IMAGES)
    data = load(tmp_path / "x.npz", image_size=6, num_classes=None)
    np.testing.assert_array_equal(data.fetch(torch.tensor([2, 0]))[:, 0], IMAGES[[2, 0]])


def test_files_are_decoded_on_demand(tmp_path: Path) -> None:
    """Only the first image is touched at the start; a later one that is broken is named when it is fetched."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for name, content in (("b.png", b"broken"), ("c.png", b"")):
        (tmp_path / name).write_bytes(content)
    data = load(tmp_path, num_classes=None)
    assert len(data) == 3 and not data.in_memory
    with pytest.raises(
        FastdiffError, match=f"cannot read the image {tmp_path / 'b.png'}: it is not a picture"
    ):
        data.fetch(torch.tensor([0, 1]))
    (tmp_path / "c.png").unlink()
    with pytest.raises(FastdiffError, match=f"image {tmp_path / 'c.png'}: No such file"):
        data.fetch(torch.tensor([2]))


def _truncated(tmp_path: Path) -> Path:
    path = write_idx(tmp_path / "short.gz", IMAGES)
    path.write_bytes(path.read_bytes()[:-12])
    return path


def _short_idx(tmp_path: Path) -> Path:
    path = write_idx(tmp_path / "short", IMAGES)
    path.write_bytes(path.read_bytes()[:-1])
    return path


def _text(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).write_text("these are not the bytes you are looking for")
    return tmp_path / name


def _npz(tmp_path: Path, **arrays: np.ndarray) -> Path:
    np.savez(tmp_path / "x.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return tmp_path / "x.npz"


def _stray(tmp_path: Path) -> Path:
    (tmp_path / "cat").mkdir()
    for path in (tmp_path / "cat" / "a.png", tmp_path / "b.png"):
        Image.new("L", (8, 8)).save(path)
    return tmp_path


def _large(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("L", (9, 10)).save(tmp_path / name / "x.png")
    return tmp_path


def _deep_colour(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / name / "x.png")
    return tmp_path


def _listing(tmp_path: Path, text: str) -> Path:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "dataset.json").write_text(text)
    return tmp_path


def _broken_png(tmp_path: Path) -> Path:
    for name in ("cat", "dog", "owl"):
        (tmp_path / name).mkdir()
        _text(tmp_path / name, "a.png")
    return tmp_path


BAD = {
    "missing": (lambda p: p / "nowhere", "no data at"),
    "empty-folder": (lambda p: p, "no images under"),
    "truncated-gz": (_truncated, "cannot read"),
    "truncated-idx": (_short_idx, "cut short"),
    "text-as-idx": (lambda p: _text(p, "data"), "not an IDX file"),
    "idx-of-labels": (lambda p: write_idx(p / "labels", LABELS), "holds no images"),
    "text-as-npz": (lambda p: _text(p, "x.npz"), "not an .npz"),
    "text-as-png": (_broken_png, "cannot read the image"),
    "stray-image": (_stray, "lies beside the class folders"),
    "pad-larger-file": (_large, r"a/x.png: cannot pad a 9x10"),
    "16-bit": (_deep_colour, "more than 8 bits"),
    "listing-text": (lambda p: _listing(p, "labels"), r'dataset.json must hold {"labels"'),
    "listing-form": (lambda p: _listing(p, '{"labels": {"a.png": 1}}'), r'dataset.json must hold {"labels"'),
    "listing-short": (lambda p: _listing(p, '{"labels": []}'), "dataset.json has no label for a.png"),
    "listing-float": (lambda p: _listing(p, '{"labels": [["a.png", 0.5]]}'), "the label 0.5 for a.png"),
    "listing-null": (lambda p: _listing(p, '{"labels": null}'), "has no labels"),
    "npz-names": (lambda p: _npz(p, pictures=IMAGES), "no array named"),
    "npz-float": (lambda p: _npz(p, images=IMAGES.astype(np.float32)), "must be uint8"),
    "npz-channels": (lambda p: _npz(p, images=np.zeros((3, 8, 8, 2), np.uint8), labels=LABELS), "1, 3 or 4"),
    "npz-pickle": (lambda p: _npz(p, images=np.array([{}], dtype=object)), "cannot read"),
    "few-labels": (lambda p: _npz(p, images=IMAGES, labels=LABELS[:2]), "one per image"),
    "float-labels": (lambda p: _npz(p, images=IMAGES, labels=LABELS / 2), "whole numbers"),
    "label-range": (lambda p: _npz(p, images=IMAGES, labels=LABELS + 1), "label 3 .* 0 to 2"),
    "no-labels": (lambda p: _npz(p, images=IMAGES), "has no labels"),
    "pad-larger": (
        lambda p: _npz(p, images=np.zeros((3, 9, 9), np.uint8), labels=LABELS),
        "cannot pad a 9x9",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    make, sentence = BAD[name]
    with pytest.raises(FastdiffError, match=sentence):
        load(make(tmp_path))


def test_class_names_must_fit(tmp_path: Path) -> None:
    path = _npz(tmp_path, images=IMAGES, labels=LABELS)
    with pytest.raises(FastdiffError, match="2 class names for 3 classes"):
        load(path, class_names=("a", "b"))
