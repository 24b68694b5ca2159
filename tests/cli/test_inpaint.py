"""``fastdiff inpaint``: what it writes, and mistakes in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.data.fit import fit_image

QUICK = ("--steps", 3, "--n", 2, "--no-progress")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Pictures for the 8 x 8 model, by what is special about them."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 5:] = 255
    pictures = {
        "image": pixels[0],
        "large": np.zeros((9, 8), np.uint8),
        "mask": mask,
        "black": 0 * mask,
        "grey": mask // 2,
        "small": mask[:4],
        "deep": np.zeros((8, 8), np.uint16),
    }
    paths = {name: tmp_path / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(paths[name])
    paths["three"] = tmp_path / "three.npz"
    np.savez(paths["three"], images=pixels)
    paths["colour"] = tmp_path / "colour.npz"
    np.savez(paths["colour"], images=np.zeros((1, 8, 8, 3), np.uint8))
    paths["text"] = tmp_path / "text.png"
    paths["text"].write_text("no picture")
    paths["missing"] = tmp_path / "missing.png"
    return paths


def test_writes_what_the_library_fills_in_and_keeps_the_known_bytes(
    command, checkpoints, files, tmp_path
) -> None:
    out = tmp_path / "new" / "folder"
    ended = command(
        "inpaint", files["three"], files["mask"], "--checkpoint", checkpoints["tiny"], "--out", out, "--class",
        "square", "--seed", 4, *QUICK,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    with np.load(out / "inpaint.npz") as archive:
        filled, images, mask = archive["arr_0"], archive["image"], archive["mask"]
    assert filled.shape == (6, 8, 8, 1) and filled.dtype == np.uint8
    assert mask.tolist() == [[False] * 5 + [True] * 3] * 8
    assert np.array_equal(filled[:, ~mask], np.repeat(images, 2, 0)[:, ~mask])
    expected = fastdiff.inpaint(
        fastdiff.load(checkpoints["tiny"]),
        torch.from_numpy(images).movedim(-1, 1) / 127.5 - 1,
        torch.from_numpy(mask),
        2,
        classes=1,
        seed=4,
        steps=3,
        progress=False,
    )
    assert np.array_equal(filled[:, mask], fastdiff.to_uint8(expected).numpy()[:, mask])
    # The columns are: known, 1, 2; a row for each of three images.
    assert Image.open(out / "inpaint.png").size == (3 * 102 + 6, 3 * 118 + 6)
    for word in ("device     cpu", "3 x 2 images in ", "38% of the pixels unknown", str(out / "inpaint.png")):
        assert word in ended.out


@pytest.mark.parametrize(
    "options",
    [("--checkpoint", "@unconditional"), ("--sampler", "dpmpp"), ("--sampler", "ddim", "--steps", "ddim4")],
    ids=lambda options: options[1].strip("@"),
)
def test_without_a_class(command, checkpoints, files, tmp_path, options) -> None:
    named = [str(checkpoints[o[1:]]) if o.startswith("@") else o for o in options]
    if "--checkpoint" not in named:
        named += ["--checkpoint", str(checkpoints["tiny"])]
    ended = command("inpaint", files["image"], files["mask"], "--out", tmp_path / "out", *QUICK, *named)
    assert ended.code == 0, ended.err


def test_shows_progress(command, checkpoints, files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a terminal, which has progress bars
    ended = command(
        "inpaint", files["image"], files["mask"], "--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--n", 3,
        "--steps", 4, "--batch-size", 2,
    )  # fmt: skip
    assert ended.code == 0 and "40/40" in ended.err  # two batches of four steps, each made five times


@pytest.fixture
def wide(tmp_path: Path) -> dict[str, Path]:
    """A picture of 20 x 12 pixels, bright on the left and dark on the right, and a mask of its right half."""
    picture = np.repeat(np.linspace(255, 0, 20).astype(np.uint8)[None], 12, 0)
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 10:] = 255
    paths = {"image": tmp_path / "wide.png", "mask": tmp_path / "wide-mask.png"}
    for name, pixels in (("image", picture), ("mask", mask)):
        Image.fromarray(pixels).save(paths[name])
    Image.fromarray(picture[:6, :4]).save(tmp_path / "tiny.png")
    Image.fromarray(mask[:6, 8:12]).save(tmp_path / "tiny-mask.png")
    return {**paths, "tiny": tmp_path / "tiny.png", "tiny-mask": tmp_path / "tiny-mask.png"}


@pytest.mark.parametrize("own_mask", [True, False], ids=["mask-of-the-image", "mask-of-the-model"])
def test_fit_crops_image_and_mask_alike(command, checkpoints, files, wide, tmp_path, own_mask: bool) -> None:
    out, mask = tmp_path / "out", wide["mask"] if own_mask else files["mask"]
    ended = command(
        "inpaint",
        wide["image"],
        mask,
        "--fit",
        "crop",
        "--checkpoint",
        checkpoints["tiny"],
        "--out",
        out,
        *QUICK,
    )
    assert ended.code == 0, ended.err
    with np.load(out / "inpaint.npz") as archive:
        filled, image, used = archive["arr_0"], archive["image"], archive["mask"]
    assert np.array_equal(image[0], fit_image(Image.open(wide["image"]), 8, 1, "crop"))
    expected = np.arange(8) >= (4 if own_mask else 5)
    assert np.array_equal(used, np.tile(expected, (8, 1)))
    assert np.array_equal(filled[:, ~used], np.repeat(image, 2, 0)[:, ~used])


def test_fit_pads_with_known_black(command, checkpoints, wide, tmp_path) -> None:
    ended = command(
        "inpaint", wide["tiny"], wide["tiny-mask"], "--fit", "pad", "--checkpoint", checkpoints["tiny"], "--out",
        tmp_path / "out", *QUICK,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "out" / "inpaint.npz") as archive:
        filled, used = archive["arr_0"], archive["mask"]
    inside = np.zeros((8, 8), bool)
    inside[1:7, 4:6] = True  # the right half of 6 x 4 in the middle
    assert np.array_equal(used, inside) and not filled[:, 0].any() and not filled[:, :, :2].any()


MISTAKES = {
    "mask-of-neither": (
        ["@large", "@small", "--fit", "crop"],
        "is 8 x 4 pixels, the image 8 x 9; give a mask of",
    ),
    "too-large-to-pad": (
        ["@large", "@mask", "--fit", "pad"],
        "cannot pad a 8x9 image to 8x8; use --fit crop",
    ),
    "no-arguments": ([], "fastdiff inpaint --help"),
    "missing-image": (["@missing", "@mask"], "no image at"),
    "missing-mask": (["@image", "@missing"], "no mask at"),
    "broken-image": (["@text", "@mask"], "cannot read the image"),
    "broken-mask": (["@image", "@text"], "cannot read the image"),
    "deep-image": (["@deep", "@mask"], "more than 8 bits a channel"),
    "image-size": (
        ["@large", "@mask"],
        "is 8 x 9 pixels with 1 channel; the model's images are 8 x 8 with 1",
    ),
    "image-channels": (["@colour", "@mask"], "is 8 x 8 pixels with 3 channels; the model's"),
    "mask-size": (["@image", "@small"], "is 8 x 4 pixels; the model's images are 8 x 8"),
    "mask-grey": (["@image", "@grey"], "must be black (0, known) and white (255, to fill) only, got 127"),
    "mask-black": (["@image", "@black"], "leaves nothing to fill: 1 (white) marks unknown pixels"),
    "class": (["@image", "@mask", "--class", "hexagon"], "unknown class 'hexagon'; known: circle"),
    "no-class": (["@image", "@mask", "--checkpoint", "@unnamed"], "give --class, 0 to 2"),
    "class-of-unconditional": (
        ["@image", "@mask", "--checkpoint", "@unconditional", "--class", "1"],
        "leave out --class",
    ),
    "n": (["@image", "@mask", "--n", "0"], "n must be at least 1, got 0"),
    "repeats": (["@image", "@mask", "--repeats", "0"], "repeats must be a whole number of at least 1, got 0"),
    "repeats-of-dpmpp": (["@image", "@mask", "--repeats", "2", "--sampler", "dpmpp"], "to repeat them: use"),
    "steps": (["@image", "@mask", "--steps", "101"], "cannot take 101 of 100 timesteps"),
    "seed": (["@image", "@mask", "--seed", "-1"], "from 0 to 4294967295, got -1"),
    "batch": (["@image", "@mask", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
    "classifier": (["@image", "@mask", "--checkpoint", "@classifier"], "is a classifier"),
    "device": (["@image", "@mask", "--device", "abacus"], "device 'abacus' cannot be used"),
    "out-is-a-file": (["@image", "@mask", "--out", "@text"], "it is a file"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(command, checkpoints, files, tmp_path, arguments: list[str], message: str) -> None:
    named = [str((files | checkpoints)[a[1:]]) if a.startswith("@") else a for a in arguments]
    defaults = {"--checkpoint": checkpoints["tiny"], "--steps": 3, "--out": tmp_path / "out"}
    options = [o for name, value in defaults.items() if name not in named for o in (name, value)]
    ended = command("inpaint", *named, *options, "--no-progress")
    line = ended.err.removesuffix("\n")
    assert line.startswith("fastdiff: ") and "\n" not in line and message in line
    assert ended.code == 2 and not ended.out
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_pictures_stand_upright(files, tmp_path) -> None:
    """As their EXIF data say: image and mask are turned as a viewer turns them."""
    from fastdiff.cli.pictures import read_images, read_mask

    turned = Image.Exif()
    turned[0x0112] = 6  # its first row is the right side
    for name, read in (
        ("image", lambda path: read_images(path, 1)[0, ..., 0]),
        ("mask", lambda p: read_mask(p, 8)),
    ):
        with Image.open(files[name]) as picture:
            upright = np.asarray(picture)
            picture.save(tmp_path / "turned.png", exif=turned)
        expected = np.rot90(upright, -1)
        assert np.array_equal(read(tmp_path / "turned.png"), expected == 255 if name == "mask" else expected)
