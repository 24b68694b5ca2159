"""guided-diffusion's ``image_datasets``: endless batches of a folder's images, its share for each process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastdiff.data.fit import centre_crop, random_crop, scale_shorter_side
from fastdiff.data.readers.pictures import known_formats

EXTENSIONS = {".jpg", ".jpeg", ".png", ".gif"}


def load_data(
    *,
    data_dir: str,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    random_crop: bool = False,
    random_flip: bool = True,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Batches without end: images [N, 3, H, W] float32 in [-1, 1], and {"y": labels [N]} if class_cond.

    A label is the file name's part before the first underscore, numbered in sorted order. With several processes, each
    has every world-size-th image.

    Raises:
        ValueError: no folder given, or no images in it.
    """
    if not data_dir:
        raise ValueError("unspecified data directory")
    files = _list_image_files_recursively(data_dir)
    if not files:
        raise ValueError(f"no images ({', '.join(sorted(EXTENSIONS))}) in {data_dir}")
    labels = None
    if class_cond:
        names = [os.path.basename(p).split("_")[0] for p in files]
        number = {name: i for i, name in enumerate(sorted(set(names)))}
        labels = [number[name] for name in names]
    together = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    data = ImageDataset(
        image_size,
        files,
        classes=labels,
        shard=rank,
        num_shards=world,
        random_crop=random_crop,
        random_flip=random_flip,
    )
    loader: Any = DataLoader(
        data,
        batch_size=batch_size,
        shuffle=not deterministic,
        num_workers=1,
        drop_last=len(data) >= batch_size,
    )
    return _endless(loader)


def _list_image_files_recursively(data_dir: str) -> list[str]:
    """The files, sorted; linked folders are followed, except for cycles."""
    found: list[str] = []

    def visit(folder: str, above: frozenset[str]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            return
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            if os.path.isdir(path):
                visit(path, above | {real})
            elif os.path.splitext(entry)[1].lower() in EXTENSIONS:
                found.append(path)

    visit(data_dir, frozenset())
    return sorted(found)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


class ImageDataset(Dataset[tuple[np.ndarray, dict[str, Any]]]):
    """Images [3, size, size] float32 in [-1, 1] with {"y": label}, of the files of one shard."""

    def __init__(
        self,
        resolution: int,
        image_paths: list[str],
        classes: list[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
        random_crop: bool = False,
        random_flip: bool = True,
    ) -> None:
        self.resolution = resolution
        self.local_images = image_paths[shard::num_shards]
        self.local_classes = None if classes is None else classes[shard::num_shards]
        self.random_crop, self.random_flip = random_crop, random_flip

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, dict[str, Any]]:
        # Pillow would start Ghostscript for an EPS, whatever its name.
        with Image.open(self.local_images[idx], formats=known_formats()) as file:
            image = file.convert("RGB")
        crop = random_crop_arr if self.random_crop else center_crop_arr
        pixels = crop(image, self.resolution)
        if self.random_flip and torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
        label = {} if self.local_classes is None else {"y": np.array(self.local_classes[idx], dtype=np.int64)}
        return np.transpose(pixels.astype(np.float32) / 127.5 - 1, (2, 0, 1)).copy(), label


def center_crop_arr(pil_image: Image.Image, image_size: int) -> np.ndarray:
    """The middle square, image_size wide: halved by boxes while twice as large, then bicubic. [H, W, 3] uint8."""
    return np.array(centre_crop(scale_shorter_side(pil_image, image_size), image_size))


def random_crop_arr(
    pil_image: Image.Image, image_size: int, min_crop_frac: float = 0.8, max_crop_frac: float = 1.0
) -> np.ndarray:
    """A random square of 0.8 to 1 of the shorter side, image_size wide. [H, W, 3] uint8."""
    cropped = random_crop(
        pil_image,
        image_size,
        lambda low, high: int(torch.randint(low, high, ())),
        (min_crop_frac, max_crop_frac),
    )
    return np.array(cropped)
