"""Images from files: as they are, or fitted if asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import pictures
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.evaluation.images import Images, read_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "grey").mkdir()
    for i, picture in enumerate(pictures(3)):
        Image.fromarray(picture[..., 0]).save(tmp_path / "grey" / f"{i}.png")
    np.savez(tmp_path / "grey.npz", pictures(3), np.array([0, 2, 1]))
    np.savez(tmp_path / "rgb.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "wide.npz", arr_0=np.zeros((2, 8, 10, 1), np.uint8))
    return tmp_path


def _all(found: Images) -> Tensor:
    return found.fetch(torch.arange(len(found)))


@pytest.mark.parametrize("name", ["grey", "grey.npz"])
def test_as_they_are(folder: Path, name: str) -> None:
    found = read_images(folder / name)
    assert found.shape == (1, 8, 8) and found.name == str(folder / name) and found.labels is None
    assert np.array_equal(_all(found).movedim(1, -1), pictures(3))


def test_labels_if_there_are_any(folder: Path) -> None:
    labels = read_images(folder / "grey.npz", num_classes=3).labels
    assert labels is not None and labels.tolist() == [0, 2, 1]
    assert read_images(folder / "grey", num_classes=3).labels is None
    with pytest.raises(FastdiffError, match="label 2 in .* is out of range"):
        read_images(folder / "grey.npz", num_classes=2)


def test_first(folder: Path) -> None:
    found = read_images(folder / "grey.npz", num_classes=3).first(2)
    assert len(found) == len(found.first(None)) == len(_all(found)) == 2
    with pytest.raises(FastdiffError, match="holds 2 images, not 3"):
        found.first(3)


def test_another_size_is_fitted_only_if_asked(folder: Path) -> None:
    with pytest.raises(
        FastdiffError, match="8 x 8 pixels and all must be grey images of 10 x 10 .*--fit pad"
    ):
        read_images(folder / "grey.npz", (1, 10, 10))
    padded = read_images(folder / "grey.npz", (1, 10, 10), fit="pad")
    padded = _all(padded)
    assert np.array_equal(padded[:, 0, 1:9, 1:9], pictures(3)[..., 0]) and not padded[:, 0, 0].any()


def test_colours(folder: Path) -> None:
    """Grey can be shown as RGB; RGB is not silently made grey."""
    assert read_images(folder / "grey.npz", (3, 8, 8), fit="pad").shape == (3, 8, 8)
    with pytest.raises(FastdiffError, match="holds RGB images .* must be grey images of 8 x 8 pixels$"):
        read_images(folder / "rgb.npz", (1, 8, 8), fit="crop")


def test_only_square_ones(folder: Path) -> None:
    with pytest.raises(FastdiffError, match="images of 10 x 8 pixels; only square ones"):
        read_images(folder / "wide.npz")


OTHERS = {
    "size": (Image.new("L", (8, 10)), "grey images of 8 x 10 pixels and all must be grey images of 8 x 8"),
    "colours": (Image.new("RGB", (8, 8)), "RGB images of 8 x 8 pixels and all must be grey images"),
    "transparency": (Image.new("LA", (8, 8)), "holds transparent images; give --fit crop to drop"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_image_is_looked_at(folder: Path, kind: str) -> None:
    """Not only the first, which is as all should be."""
    image, message = OTHERS[kind]
    image.save(folder / "grey" / "9.png")
    with pytest.raises(FastdiffError, match=rf"{message}.* \(the first is .*9.png\)"):
        read_images(folder / "grey")
    if kind == "colours":  # what is lost by making it grey is never what was meant
        with pytest.raises(FastdiffError, match="9.png"):
            read_images(folder / "grey", fit="crop")
    else:
        assert len(_all(read_images(folder / "grey", fit="crop"))) == 4


def test_broken_images_are_left_out_if_asked(folder: Path) -> None:
    (folder / "grey" / "1.png").write_bytes(b"text")
    with pytest.raises(FastdiffError, match="cannot read the image .*1.png: it is not a picture"):
        read_images(folder / "grey")
    found = read_images(folder / "grey", skip_broken=True)
    assert np.array_equal(_all(found).movedim(1, -1), pictures(3)[[0, 2]])
