"""Small data sets of every kind: eight pictures of noise, of two classes."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("circle", "square")


def picture(number: int, size: tuple[int, int] = (22, 18), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(number: int, **options: Any) -> bytes:
    file = io.BytesIO()
    picture(number, **options).save(file, "PNG")
    return file.getvalue()


def write_folder(folder: Path, count: int = 8, classes: tuple[str, ...] = CLASSES, **options: Any) -> Path:
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, **options).save(path)
    return folder


def write_zip(path: Path, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(8):
            archive.writestr(f"{CLASSES[i % 2]}/{i}.png", png(i, **options))
    return path


def write_tar(path: Path, **options: Any) -> Path:
    with tarfile.open(path, "w") as archive:
        for i in range(8):
            for name, content in ((f"{i}.png", png(i, **options)), (f"{i}.cls", str(i % 2).encode())):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return path


def write_npz(path: Path, **options: Any) -> Path:
    np.savez(
        path, images=np.stack([np.asarray(picture(i, **options)) for i in range(8)]), labels=np.arange(8) % 2
    )
    return path


def write_idx(path: Path, **options: Any) -> Path:
    images = np.stack([np.asarray(picture(i, mode="L")) for i in range(8)])
    path.write_bytes(bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels.write_bytes(bytes([0, 0, 8, 1]) + np.array([8], ">u4").tobytes() + bytes([0, 1] * 4))
    return path


KINDS: dict[str, tuple[str, Callable[..., Path]]] = {
    "folder": ("photos", write_folder),
    "zip": ("photos.zip", write_zip),
    "tar": ("photos.tar", write_tar),
    "npz": ("photos.npz", write_npz),
    "idx": ("photos-images-idx3-ubyte", write_idx),
}
