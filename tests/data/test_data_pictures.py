"""How pictures are decoded: which formats, which way up, what of transparency and of 16 bits."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from fastdiff.data.fit import fit_image
from fastdiff.data.images import load_data
from fastdiff.data.readers.pictures import FORMATS, decode, open_image, read_header
from fastdiff.errors import FastdiffError

WIDE = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
# What a viewer shows of WIDE, by the EXIF value that its file has (CIPA DC-008, figure "Orientation").
UPRIGHT = {
    1: WIDE,
    2: WIDE[:, ::-1],
    3: WIDE[::-1, ::-1],
    4: WIDE[::-1],
    5: WIDE.transpose(1, 0, 2),
    6: np.rot90(WIDE, -1),
    7: WIDE.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(WIDE),
}


def encoded(picture: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_every_named_format_is_read(tmp_path: Path, extension: str) -> None:
    kind = FORMATS[extension]
    if kind not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / f"0{extension}"
    mode = "L" if extension == ".pgm" else "RGB"
    Image.new(mode, (8, 8), 200 if mode == "L" else (200, 200, 200)).save(path, kind)
    data = load_data(tmp_path, image_size=8, channels=1, num_classes=None)
    assert abs(int(data.fetch(torch.tensor([0]))[0, 0, 4, 4]) - 200) <= 2  # of lossy formats


@pytest.mark.parametrize("name", ["0.png", "0.eps"])
def test_no_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An EPS makes Pillow call Ghostscript; here a program of that name would leave a proof."""
    proof, program = tmp_path / "proof", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {proof}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / name
    path.write_bytes(encoded(Image.new("RGB", (8, 8)), "EPS").read())
    with pytest.raises(FastdiffError, match=r"it is not a picture of a format that is read \(PNG, JPEG"):
        open_image(path)
    assert not proof.exists()
    with Image.open(path) as image, pytest.raises(OSError):
        image.load()  # what was refused would indeed have started it
    assert proof.exists()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(Image.fromarray(WIDE), kind, exif=exif, **options)
    assert np.array_equal(np.asarray(decode(file, "x")), UPRIGHT[orientation])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_orientation_that_makes_no_sense_turns_nothing() -> None:
    file = encoded(
        Image.fromarray(WIDE), "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffbroken"
    )
    assert np.array_equal(np.asarray(decode(file, "x")), WIDE)


def test_transparency_is_dropped() -> None:
    """The colours under it are what is left, as guided-diffusion has it; docs/data.md says so."""
    colours = np.zeros((8, 8, 4), np.uint8)
    colours[..., 0], colours[:, 4:, 3] = 90, 255
    picture = decode(encoded(Image.fromarray(colours), "PNG"), "x")
    assert (fit_image(picture, 8, 3) == [90, 0, 0]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_headers(mode: str) -> None:
    header = read_header(encoded(Image.new(mode, (12, 8)), "PNG"), "x")
    assert header == (1 if mode in ("1", "L", "LA") else 3, 8, 12, mode.endswith("A"))


def test_16_bits() -> None:
    """Colours are read as their upper 8 bits, as viewers show them; 16-bit greys, mostly measurements, are refused."""
    grey = Image.fromarray(np.full((8, 8), 300, np.uint16))
    with pytest.raises(FastdiffError, match="x has more than 8 bits a channel"):
        decode(encoded(grey, "PNG"), "x")
    header = b"P6 8 8 65535\n" + np.full((8, 8, 3), 0x80FF, ">u2").tobytes()
    picture = decode(io.BytesIO(header), "x")
    assert (np.asarray(picture) == 0x80).all()


def test_colours_that_are_not_read() -> None:
    lab = Image.new("LAB", (8, 8))
    with pytest.raises(FastdiffError, match=r"x has colours that are not read \(LAB\)"):
        decode(encoded(lab, "TIFF"), "x")
