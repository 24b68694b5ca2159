"""Damaged shards, zips and arrays: refused in a sentence, or every image is there and is what it was."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mutate import damaged, numbered, one_sentence, rounds
from PIL import Image

from fastdiff.data.readers import Arrays, EncodedImages, read

COUNT = 5
pytestmark = pytest.mark.filterwarnings("ignore")  # what Pillow and zipfile remark of damaged files


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 40 * shade).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, kind: int, prefix: str = "") -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for i in range(COUNT):
            label = json.dumps({"label": i}).encode()
            for name, content in ((f"{prefix}{i}.png", png(i)), (f"{prefix}{i}.json", label)):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def packed(path: Path, method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for i in range(COUNT):
            archive.writestr(f"class{i}/{i}.png", png(i))


def arrays(path: Path, save: Callable) -> None:
    save(path, images=np.arange(COUNT * 64, dtype=np.uint8).reshape(COUNT, 8, 8), labels=np.arange(COUNT))


def idx(path: Path, pack: Callable[[bytes], bytes]) -> None:
    path.write_bytes(
        pack(b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (COUNT, 8, 8)) + bytes(320))
    )


SOURCES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "ustar": ("x.tar", lambda path: shard(path, tarfile.USTAR_FORMAT)),
    "gnu": ("x.tar", lambda path: shard(path, tarfile.GNU_FORMAT)),
    "stored zip": ("x.zip", lambda path: packed(path, zipfile.ZIP_STORED)),
    "deflated zip": ("x.zip", lambda path: packed(path, zipfile.ZIP_DEFLATED)),
    "npz": ("x.npz", lambda path: arrays(path, np.savez)),
    "deflated npz": ("x.npz", lambda path: arrays(path, np.savez_compressed)),
    "gzipped idx": ("x-images-idx3-ubyte.gz", lambda path: idx(path, gzip.compress)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_damage(tmp_path: Path, kind: str) -> None:
    name, write = SOURCES[kind]
    path = tmp_path / name
    write(path)
    whole = read(path)
    expected = {whole.name(i): np.asarray(whole.image(i)).tolist() for i in range(len(whole))}
    content, refused = path.read_bytes(), 0
    for number in rounds(200):
        data = damaged(content, numbered(number))
        path.write_bytes(data)
        with one_sentence() as said:
            found = read(path)
        if said:
            refused += 1
            continue
        # A last member of a tar that is zeros, or cut off, up to the mark of the end is like one that never was.
        shorter = kind in ("ustar", "gnu") and content.startswith(data.rstrip(b"\0"))
        assert len(found) == len(whole) or shorter, number
        for i in range(len(found)):
            # A zip's directory has no checksum: a wrong name is reported when the image is read.
            with one_sentence():
                image = found.image(i)
                assert np.asarray(image).tolist() == expected[found.name(i)], number
    assert refused > 0.2 * len(rounds(200))


@pytest.mark.parametrize("kind", ["long pax names", "long gnu names", "plain idx"])
def test_damage_where_no_checksum_is(tmp_path: Path, kind: str) -> None:
    """Names and sizes behind a tar's own header, and IDX: as many images as there were, or one sentence."""
    path = tmp_path / ("x-images-idx3-ubyte" if kind == "plain idx" else "x.tar")
    if kind == "plain idx":
        idx(path, bytes)
    else:
        shard(path, tarfile.PAX_FORMAT if "pax" in kind else tarfile.GNU_FORMAT, "a" * 300 + "/")
    content = path.read_bytes()
    for number in rounds(200):
        path.write_bytes(damaged(content, numbered(number)))
        with one_sentence():
            found = read(path)
            for i in range(len(found)):
                with one_sentence():
                    found.image(i)


def test_what_is_left_of_damaged_shards(tmp_path: Path) -> None:
    """With ``skip_broken``: what is read is what was written, and what is not is listed."""
    path = tmp_path / "x.tar"
    shard(path, tarfile.USTAR_FORMAT)
    whole, content, some = read(path), path.read_bytes(), 0
    assert isinstance(whole, EncodedImages)
    expected = {whole.name(i): np.asarray(whole.image(i)).tolist() for i in range(len(whole))}
    for number in rounds(100):
        path.write_bytes(damaged(content, numbered(number)))
        with one_sentence() as said:
            found = read(path, skip_broken=True)
        if said:
            continue
        some += len(found) < len(whole)
        for i in range(len(found)):
            assert np.asarray(found.image(i)).tolist() == expected[found.name(i)], number
    assert some


def test_damaged_pictures(tmp_path: Path) -> None:
    """A damaged file of any format gives an error of one sentence, or a picture with 8 bits a channel."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for extension, options in (
        ("png", {"exif": exif}),
        ("jpg", {"exif": exif}),
        ("webp", {"exif": exif, "lossless": True}),
        ("tif", {"exif": exif}),
        ("bmp", {}),
        ("gif", {}),
        ("ppm", {}),
    ):
        path = tmp_path / extension / f"0.{extension}"
        path.parent.mkdir()
        picture.save(path, **options)
        content = path.read_bytes()
        for number in rounds(60):
            path.write_bytes(damaged(content, numbered(number)))
            with one_sentence():
                found = read(path.parent)
                assert not isinstance(found, Arrays)
                assert np.asarray(found.image(0).convert("RGB")).dtype == np.uint8
