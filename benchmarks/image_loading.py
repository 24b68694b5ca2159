"""Images a second from files to a step's batch, by kind of source and number of workers, turn by turn in one run.

    python benchmarks/image_loading.py [--workers 0 1 2] [--rounds N] [--data FOLDER]

Prints Markdown. Without FOLDER it writes JPEGs of dead leaves; files come from the operating system's cache.
"""

from __future__ import annotations

import platform
import statistics
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
import tyro
from PIL import Image, features
from ratios import processor
from tqdm import tqdm

from fastdiff.dpm2015.data import dead_leaves
from fastdiff.training.batches import Shuffled
from fastdiff.training.data import ImageData, load_data
from fastdiff.training.loading import ImageLoader


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    data: Path | None = None
    """A folder of images; generated if left out."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of worker processes."""
    stored: int = 256
    """Side of the generated images."""
    image_size: int = 64
    """Side that they are cropped to."""
    batch_size: int = 64
    """Images a step."""
    steps: int = 12
    """Steps timed each turn."""
    rounds: int = 7
    """Turns of each."""


def main(setting: Setting) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = setting.data or write_jpegs(Path(name) / "folder", setting.stored)
        sources = {"folder": folder, "zip": zipped(folder, Path(name)), "tar": tarred(folder, Path(name))}
        data = {
            kind: load_data(path, image_size=setting.image_size, channels=3, num_classes=None)
            for kind, path in sources.items()
        }
        sides = [(kind, workers) for kind in data for workers in setting.workers]
        turns: dict[tuple[str, int], list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in tqdm(range(setting.rounds), leave=False):
            for kind, workers in sides:
                turns[kind, workers].append(one_turn(data[kind], workers, setting))
        count = len(next(iter(data.values())))
    libjpeg = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    print(f"{processor()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, ", end="")
    print(f"PyTorch {torch.__version__}, Pillow {PIL.__version__} ({libjpeg})")
    print(f"{count} images to {setting.image_size}x{setting.image_size}, batches of {setting.batch_size}\n")
    print("| source | workers | images/s | first batch, s |\n|---|---|---|---|")
    for (kind, workers), measured in turns.items():
        rate, first = (statistics.median(values) for values in zip(*measured, strict=True))
        print(f"| {kind} | {workers} | {rate:.0f} | {first:.2f} |")


def one_turn(data: ImageData, workers: int, setting: Setting) -> tuple[float, float]:
    """Images a second once the workers are busy, and seconds from nothing to the first batch."""
    order = Shuffled(len(data), seed=0)
    loader = ImageLoader(data, lambda step: order.indices(step, setting.batch_size), workers)
    start = time.perf_counter()
    loader.images(0)
    first = time.perf_counter() - start
    begin = 1 + 2 * workers  # what was prefetched at the start does not count
    for step in range(1, begin):
        loader.images(step)
    start = time.perf_counter()
    for step in range(begin, begin + setting.steps):
        loader.images(step)
    seconds = time.perf_counter() - start
    loader.close()
    return setting.steps * setting.batch_size / seconds, first


def write_jpegs(folder: Path, side: int, count: int = 1024, distinct: int = 64) -> Path:
    """Coloured dead leaves, whose edges cost a decoder what photographs cost it."""
    folder.mkdir()
    images = dead_leaves(3 * distinct, size=side, radii=(3.0, side / 2)).view(distinct, 3, side, side)
    for i in range(count):
        pixels = np.roll(images[i % distinct].permute(1, 2, 0).numpy(), i, axis=1)
        Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=90)
    return folder


def zipped(folder: Path, out: Path) -> Path:
    with zipfile.ZipFile(out / "data.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return out / "data.zip"


def tarred(folder: Path, out: Path) -> Path:
    with tarfile.open(out / "data.tar", "w") as archive:
        archive.add(folder, ".")
    return out / "data.tar"


if __name__ == "__main__":
    main(tyro.cli(Setting))
