"""``fastdiff sample``: images from a checkpoint, as a captioned grid and as guided-diffusion's npz."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import fastdiff
from fastdiff.cli import INTERRUPTED
from fastdiff.cli.compare import ratio_to_eager
from fastdiff.cli.info import backends_in_words, device_name
from fastdiff.cli.shared import check_folder, class_number, load_denoiser
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path
from fastdiff.images import grid

FILES = ("samples.png", "samples.npz")


@dataclass(frozen=True)
class Sample:
    """Sample images: writes OUT/samples.png (a captioned grid) and OUT/samples.npz (arr_0 NHWC uint8, arr_1 labels).

    Ctrl-C keeps the images that are finished.
    """

    checkpoint: str = "fashion-mnist"
    """A .safetensors or .pt file, or the name of a bundled model."""
    preset: str | None = None
    """The configuration of a file that does not bring its own; see fastdiff presets."""
    n: int = 64
    """How many images."""
    classes: tuple[str, ...] = ()
    """Class names or numbers, repeated as needed; all classes in turn if left out."""
    sampler: Literal["ancestral", "ddim", "dpmpp", "euler", "heun"] = "dpmpp"
    """How to step: "dpmpp" is DPM-Solver++ 2M."""
    steps: str = "20"
    """A count, or for ancestral and ddim also "ddim50" or counts per section such as "90,60,60,20,20"."""
    eta: float = 0.0
    """Noise of ddim: 0 is deterministic, 1 as noisy as ancestral sampling."""
    guidance_scale: float = 1.0
    """Classifier-free guidance: above 1 sharpens the class at a second model call a step; 1 is without."""
    seed: int = 0
    """Of the run. Image i is the same whatever N and BATCH_SIZE are."""
    batch_size: int = 16
    """Images at a time."""
    out: Path = Path("out")
    """Folder for the results; made if it does not exist."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """Where to run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in."""
    compare: bool = True
    """Measure the same model on eager PyTorch too, turn by turn, and print the ratio."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> int:
        model = load_denoiser(self.checkpoint, self.preset, self.device, self.dtype)
        names = list(model.class_names)
        labels = self._labels(model.config.num_classes, names)
        options: dict[str, Any] = {
            "sampler": self.sampler,
            "steps": self.steps,
            "eta": self.eta,
            "guidance_scale": None if self.guidance_scale == 1 else self.guidance_scale,
        }
        batches = fastdiff.sample_batches(
            model,
            self.n,
            classes=labels,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=self.progress,
            **options,
        )  # checks every option, and samples nothing yet
        check_folder(self.out, FILES)
        start = time.perf_counter()
        images = self._finished(batches)
        seconds = time.perf_counter() - start
        if not len(images):
            print("fastdiff: interrupted before any image was finished; nothing written", file=sys.stderr)
            return INTERRUPTED
        self._write(images, None if labels is None else labels[: len(images)].numpy(), names)
        print(f"device     {device_name(self.device)}")
        print(f"backend    {backends_in_words(torch.device(self.device).type)}")
        print(f"sampled    {len(images)} images in {seconds:.1f} s: {len(images) / seconds:.2f} images/s")
        print(f"wrote      {', '.join(str(self.out / name) for name in FILES)}", flush=True)
        if len(images) < self.n:
            print(f"fastdiff: interrupted after {len(images)} of {self.n} images", file=sys.stderr)
            return INTERRUPTED
        if self.compare:
            few = min(self.n, self.batch_size)
            ratio = ratio_to_eager(model, few, None if labels is None else labels[:few], options)
            print(f"speed      {ratio}")
        return 0

    def _labels(self, num_classes: int | None, names: list[str]) -> Tensor | None:
        """[N] int64: the chosen classes in turn."""
        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        if num_classes is None:
            if self.classes:
                raise FastdiffError(f"{self.checkpoint} is not class-conditional; leave out --classes")
            return None
        chosen = [class_number(c, num_classes, names) for c in self.classes] or list(range(num_classes))
        return torch.from_numpy(np.resize(np.array(chosen, dtype=np.int64), self.n))

    def _finished(self, batches: Iterator[Tensor]) -> np.ndarray:
        """[M,H,W,C] uint8, M <= N: what there is at the end, or when Ctrl-C comes."""
        done: list[np.ndarray] = []
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for batch in batches:
                    done.append(fastdiff.to_uint8(batch).cpu().numpy())
        except torch.OutOfMemoryError:
            raise FastdiffError(
                f"{self.device} has no memory for {self.batch_size} images at a time; give a smaller --batch-size"
            ) from None
        return np.concatenate(done) if done else np.empty((0, 1, 1, 1), np.uint8)

    def _write(self, images: np.ndarray, labels: np.ndarray | None, names: list[str]) -> None:
        captions = None if labels is None else [names[k] if names else str(k) for k in labels]
        # Classes come in turn, so that this many columns show each class in a column of its own.
        kinds = len(self.classes) or (0 if labels is None else int(labels.max()) + 1)
        columns = kinds if 4 <= kinds <= 16 else None
        with atomic_path(self.out / "samples.npz") as path, open(path, "wb") as file:
            np.savez(file, *([images] if labels is None else [images, labels]))
        with atomic_path(self.out / "samples.png") as path:
            grid(images, captions, columns=columns).save(path, format="PNG")
