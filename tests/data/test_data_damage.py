"""Archives and arrays that are damaged: every byte is accounted for, or the first that is not is named."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.data.images import ImageData, load_data
from fastdiff.data.readers import read_idx, read_npz
from fastdiff.errors import FastdiffError

COUNT, BLOCK = 6, tarfile.BLOCKSIZE


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, count: int = COUNT, kind: int = tarfile.PAX_FORMAT, prefix: str = "") -> Path:
    """Pictures of shades 0, 1, ..., which are their labels too."""
    with tarfile.open(path, "w", format=kind) as tar:
        for i in range(count):
            for name, content in ((f"{prefix}{i}.png", png(i)), (f"{prefix}{i}.cls", str(i).encode())):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return path


def headers(path: Path) -> list[int]:
    """Offsets of the members' headers."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def load(path: Path, **options: bool) -> ImageData:
    return load_data(path, image_size=8, channels=1, num_classes=COUNT, **options)


def shades(data: ImageData) -> list[int]:
    found = data.fetch(torch.arange(len(data)))[:, 0, 0, 0].tolist()
    assert data.labels is not None and data.labels.tolist() == found
    return found


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_whole_shards(tmp_path: Path, kind: int) -> None:
    path = write_shard(tmp_path / "x.tar", kind=kind, prefix="" if kind == 0 else "a" * 120 + "/")
    assert shades(load(path)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("member", [0, 4, 2 * COUNT - 1])
def test_a_damaged_header(shard: Path, member: int, caplog: pytest.LogCaptureFixture) -> None:
    """Python's tarfile takes it for the end of the archive."""
    offset = headers(shard)[member]
    content = bytearray(shard.read_bytes())
    content[offset + 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FastdiffError, match=f"x.tar is damaged at byte {offset}: .*; --skip-broken leaves"):
        load(shard)
    found = load_data(shard, image_size=8, channels=1, num_classes=None, skip_broken=True)
    assert len(found) == COUNT - 1  # without its picture, or without its label
    assert f"x.tar: bytes {offset} to {offset + 2 * BLOCK} belong to no member" in caplog.text


def test_every_cut_is_seen(shard: Path) -> None:
    """At every block, and beside them. What is left when nothing but zeros is cut off is whole."""
    content = shard.read_bytes()
    end = headers(shard)[-1] + 2 * BLOCK
    for size in sorted({*range(0, len(content), BLOCK), *range(100, end, 1111), end - 1, end + 1}):
        shard.write_bytes(content[:size])
        if size >= end + BLOCK:
            assert shades(load(shard)) == [0, 1, 2, 3, 4, 5]
            continue
        with pytest.raises(FastdiffError, match="damaged at byte|cut short|is empty"):
            load(shard)


def test_parts_that_are_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As files are that were cut in mid-copy: a member in the middle, and the second half."""
    shard = write_shard(tmp_path / "x.tar", 40)
    offsets, content = headers(shard), shard.read_bytes()
    start, stop = offsets[20], offsets[22]
    shard.write_bytes(content[:start] + bytes(stop - start) + content[stop:])
    with pytest.raises(FastdiffError, match=rf"bytes {start} to {stop} belong to no member \(zeros\)"):
        load(shard)
    found = load_data(shard, image_size=8, channels=1, num_classes=None, skip_broken=True)
    assert len(found) == 39 and f"bytes {start} to {stop} belong to no member" in caplog.text
    shard.write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(
        FastdiffError, match=f"bytes {start} to {len(content)} are zeros, more than .* is missing"
    ):
        load(shard)


def test_what_stands_behind_the_end(shard: Path) -> None:
    content, end = shard.read_bytes(), headers(shard)[-1] + 2 * BLOCK
    shard.write_bytes(content + b"text")
    with pytest.raises(FastdiffError, match=f"damaged at byte {end}: "):
        load(shard)
    other = write_shard(shard.with_name("y.tar"), prefix="more/").read_bytes()
    shard.write_bytes(content + other)  # Python's tarfile, and tar, would read the first one only
    with pytest.raises(FastdiffError, match=f"bytes {end} to {len(content)} belong to no member"):
        load(shard)
    assert shades(load(shard, skip_broken=True)) == [0, 1, 2, 3, 4, 5] * 2


@pytest.mark.parametrize("size", [-1024, 2**62, 2**33])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_sizes_that_lie(tmp_path: Path, size: int, kind: bytes) -> None:
    """The walk neither turns back for ever (CVE-2025-8194) nor takes the memory that a header names."""
    header = tarfile.TarInfo("0.png")
    header.type, header.size = kind, size
    path = tmp_path / "x.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4 * BLOCK))
    with pytest.raises(FastdiffError, match="damaged at byte 0"):
        load(path)


def test_links_and_labels_in_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_shard(tmp_path / "x.tar", 2)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        tar.addfile(link)
        for name in ("3.cls", "0.txt", "0.json"):
            header, content = tarfile.TarInfo(name), b'{"label": 0}' if name == "0.json" else b"1"
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    assert shades(load(path)) == [0, 1]
    assert "left out 1 .txt, 1 labels without an image, 1 links in shards" in caplog.text
    with tarfile.open(path, "a") as tar:
        header = tarfile.TarInfo("1.json")
        header.size = 12
        tar.addfile(header, io.BytesIO(b'{"label": 0}'))
    with pytest.raises(FastdiffError, match="x.tar has two labels for 1: 1 and 0"):
        load(path)


def test_a_shard_twice_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    path = write_shard(tmp_path / "shards" / "a.tar")
    (path.parent / "b.tar").symlink_to(path)
    assert len(load(path.parent)) == COUNT
    (path.parent / "c.tar").symlink_to("nowhere")
    with pytest.raises(FastdiffError, match="c.tar is no file that can be read"):
        load(path.parent)


def test_a_name_twice_in_a_zip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for shade in (3, 1):
            archive.writestr("a/x.png", png(shade))
        archive.writestr("a/notes.txt", b"")
    with pytest.raises(FastdiffError, match="two images of the name a/x.png"):
        load(path)
    data = load_data(path, image_size=8, channels=1, num_classes=None, skip_broken=True)
    assert data.fetch(torch.tensor([0]))[0, 0, 0, 0] == 1  # what unzip leaves
    assert "left out 1 .txt" in caplog.text


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "text", [DEEP, f'{{"labels": {DEEP}', '{"labels": [["cat/0.png", 1' + "0" * 30 + "]]}"]
)
def test_listings(tmp_path: Path, text: str) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(png(0))
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(FastdiffError, match="dataset.json (must hold|has labels beyond 64 bits)"):
        load(tmp_path)


def test_deep_labels(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.tar", 1)
    with tarfile.open(path, "a") as tar:
        header = tarfile.TarInfo("0.json")
        header.size = len(DEEP)
        tar.addfile(header, io.BytesIO(DEEP.encode()))
    with pytest.raises(FastdiffError, match="0.json in .* must hold"):
        load(path)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("head", "sizes", "fragment"),
    [
        (b"\0\0\x08\xff", (1,) * 255, "not an IDX file"),
        (b"\0\0\x08\x03", (0, 1 << 31, 1 << 31), "holds no images"),
        (b"\0\0\x08\x03", (1 << 31, 1 << 31, 1 << 31), "is cut short"),
        (b"\0\0\x08\x03", (3, 2, 0), "holds no images|longer"),
        (b"\0\0\x08\x03", (2, 2, 2), "is longer than it should be: its header promises"),
        (b"\0\0\x08\x03", (4, 2, 2), "is cut short"),
    ],
)  # fmt: skip
def test_idx_headers(
    tmp_path: Path, head: bytes, sizes: tuple[int, ...], fragment: str, packed: bool
) -> None:
    """Over three images of 2 x 2, if there are any."""
    data = bytes(0 if 0 in sizes else 12)
    content = head + struct.pack(f">{len(sizes)}I", *sizes) + data
    (tmp_path / "x").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(FastdiffError, match=fragment):
        load(tmp_path / "x")


def test_whole_idx(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 3, 2, 2) + bytes(range(12)))
    assert read_idx(tmp_path / "x").tolist() == np.arange(12).reshape(3, 2, 2).tolist()


def _npz(path: Path, change: Callable[[bytes], bytes], name: str = "images.npy") -> Path:
    file = io.BytesIO()
    np.save(file, np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, change(file.getvalue()))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"(3, 4, 4)", b"(2, 4, 4)"),
        lambda data: data.replace(b"(3, 4, 4)", b"(4, 4, 4)"),
        lambda data: data.replace(b"(3, 4, 4), }" + b" " * 20, b"(3, 4, 4" + b"0" * 19 + b"), }   "),
        lambda data: data.replace(b"{'descr'", b"{[[[[[[["),
        lambda data: data.replace(b"|u1", b"|O "),
        lambda data: b"raw bytes",
        lambda data: b"",
        lambda data: data[:20],
    ],
    ids=["fewer", "more", "huge", "syntax", "objects", "raw", "nothing", "cut"],
)
def test_npz_headers(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(FastdiffError, match="cannot read .*x.npz: ."):
        load(_npz(tmp_path / "x.npz", change))


def test_whole_npz(tmp_path: Path) -> None:
    found = read_npz(_npz(tmp_path / "x.npz", lambda data: data)).images
    assert found.tolist() == np.arange(48).reshape(3, 4, 4).tolist()


def test_a_listing_with_two_labels(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["0.png", 0], ["0.png", 1]]}))
    with pytest.raises(FastdiffError, match="has two labels for 0.png: 0 and 1"):
        load(tmp_path)
