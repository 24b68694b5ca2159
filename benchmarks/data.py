"""How fast do images get from files into a step's batch? By kind of source and number of workers, turn by turn.

    python benchmarks/data.py [--workers 0 1 2] [--rounds N] [--data FOLDER]

Prints Markdown: medians of the turns. Without FOLDER it writes JPEGs of coloured noise; files come from the operating
system's cache. Processor time an image, unlike images a second, hardly depends on what else runs on the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
import tyro
from PIL import Image, features
from tqdm import tqdm

from fastdiff.bench.machine import processor
from fastdiff.bench.report import table
from fastdiff.data.images import ImageData, load_data
from fastdiff.data.loading import ImageLoader
from fastdiff.training.batches import Shuffled


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    data: Path | None = None
    """A folder of images; generated if left out."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of worker processes."""
    stored: int = 256
    """Size in pixels of the generated images."""
    image_size: int = 64
    """Size in pixels to which they are cropped."""
    batch_size: int = 64
    """Images per step."""
    steps: int = 12
    """Steps timed in each turn."""
    rounds: int = 7
    """Number of turns of each source with each number of workers."""


def main(setting: Setting) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = setting.data or write_jpegs(Path(name) / "folder", setting.stored)
        sources = {"folder": folder, "zip": zipped(folder, Path(name)), "tar": tarred(folder, Path(name))}
        data = {
            kind: load_data(path, image_size=setting.image_size, channels=3, num_classes=None)
            for kind, path in sources.items()
        }
        sides = [(kind, workers) for kind in data for workers in setting.workers]
        turns: dict[tuple[str, int], list[Turn]] = {side: [] for side in sides}
        for _ in tqdm(range(setting.rounds), leave=False):
            for kind, workers in sides:
                turns[kind, workers].append(one_turn(data[kind], workers, setting))
        count = len(next(iter(data.values())))
    libjpeg = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    print(f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, ", end="")
    print(f"PyTorch {torch.__version__}, Pillow {PIL.__version__} ({libjpeg})")
    print(f"{count} images to {setting.image_size}x{setting.image_size}, batches of {setting.batch_size}\n")
    head = ("source", "workers", "images/s (all turns)", "ms an image: trainer", "workers", "first batch, s")
    body = []
    for (kind, workers), measured in turns.items():
        median = Turn(*(statistics.median(values) for values in zip(*measured, strict=True)))
        low, high = (f(turn.rate for turn in measured) for f in (min, max))
        times = (f"{value:.2f}" for value in median[1:])
        body.append((kind, str(workers), f"{median.rate:.0f} ({low:.0f} to {high:.0f})", *times))
    print(table(head, body))


class Turn(NamedTuple):
    """Images a second with busy workers; milliseconds of processor time an image; seconds to the first batch."""

    rate: float
    trainer: float
    workers: float
    first: float


def one_turn(data: ImageData, workers: int, setting: Setting) -> Turn:
    order = Shuffled(len(data), seed=0)
    loader = ImageLoader(data, lambda step: order.indices(step, setting.batch_size), workers)
    start = time.perf_counter()
    loader.images(0)
    first = time.perf_counter() - start
    begin = 1 + 2 * workers  # what was prefetched at the start does not count
    for step in range(1, begin):
        loader.images(step)
    before = np.array([time.perf_counter(), time.process_time(), workers_time()])
    for step in range(begin, begin + setting.steps):
        loader.images(step)
    wall, trainer, decoders = np.array([time.perf_counter(), time.process_time(), workers_time()]) - before
    loader.close()
    count = setting.steps * setting.batch_size
    return Turn(count / wall, 1e3 * trainer / count, 1e3 * decoders / count, first)


def workers_time() -> float:
    """Seconds of processor time that the worker processes have taken (fields 14 and 15 of Linux's stat)."""
    ticks = 0
    for worker in multiprocessing.active_children():
        stat = Path(f"/proc/{worker.pid}/stat").read_text()
        ticks += sum(int(field) for field in stat.rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def write_jpegs(folder: Path, side: int, count: int = 1024, distinct: int = 64) -> Path:
    """Coloured noise whose amplitude falls as 1 / frequency, as that of photographs does."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    for i in range(distinct):
        waves = np.fft.rfft2(rng.normal(size=(3, side, side))) / frequency
        pixels = np.fft.irfft2(waves, (side, side)).transpose(1, 2, 0)
        image = Image.fromarray((127 + 55 * pixels / pixels.std()).clip(0, 255).astype(np.uint8))
        for copy in range(i, count, distinct):
            image.save(folder / f"{copy:06d}.jpg", quality=90)
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
    main(tyro.cli(Setting, description=__doc__))
