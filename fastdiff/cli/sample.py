"""``fastdiff sample``: images from a checkpoint, as a captioned grid and as guided-diffusion's npz."""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.cli.info import backend_name, device_name
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path
from fastdiff.images import grid

COMPARE_SAMPLES, COMPARE_STEPS, COMPARE_ROUNDS = 8, 4, 3


@dataclass(frozen=True)
class Sample:
    """Sample images: writes OUT/samples.png (a captioned grid) and OUT/samples.npz (arr_0 NHWC uint8, arr_1 labels).

    Ctrl-C keeps the images that are finished.
    """

    checkpoint: str = "fashion-mnist"
    """A .safetensors or .pt file, or the name of a bundled model."""
    n: int = 64
    """How many images."""
    classes: tuple[str, ...] = ()
    """Class names or numbers, repeated as needed; all classes in turn if left out."""
    sampler: Literal["ancestral", "ddim", "dpmpp", "euler", "heun"] = "dpmpp"
    """How to step: "dpmpp" is DPM-Solver++ 2M."""
    steps: str = "20"
    """A count, "ddim50", or counts per section such as "90,60,60,20,20"."""
    eta: float = 0.0
    """Noise of DDIM: 0 is deterministic, 1 as noisy as ancestral sampling."""
    guidance_scale: float | None = None
    """Classifier-free guidance: above 1 sharpens the class; costs a second model evaluation a step."""
    seed: int = 0
    """Of the run. Image i is the same whatever N and BATCH_SIZE are."""
    batch_size: int = 16
    """Images at a time."""
    out: Path = Path("out")
    """Folder for the results; made if it does not exist."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """Where to run."""
    compare: bool = True
    """Measure the same model on eager PyTorch too, turn by turn, and print the ratio."""
    progress: Annotated[bool, tyro.conf.arg(help="Show a progress bar.")] = True

    def run(self) -> int:
        model = self._model()
        names = list(getattr(model, "class_names", None) or [])
        labels = self._labels(getattr(model.config, "num_classes", None), names)
        self._writable()
        options: dict[str, Any] = {
            "sampler": self.sampler,
            "steps": int(self.steps) if self.steps.isdigit() else self.steps,
            "eta": self.eta,
            "guidance_scale": self.guidance_scale,
        }
        start = time.perf_counter()
        images, interrupted = self._sample(model, labels, options)
        seconds = time.perf_counter() - start
        if len(images):
            self._write(images, labels, names)
        print(f"device     {device_name(self.device)}")
        print(f"backend    {backend_name(torch.device(self.device).type)}")
        print(f"sampled    {len(images)} images in {seconds:.1f} s: {len(images) / seconds:.2f} images/s")
        if interrupted:
            print(f"stopped after {len(images)} of {self.n} images", file=sys.stderr)
            return 130
        if self.compare:
            print(f"to eager   {self._ratio(model, labels, options)}")
        print(f"wrote      {self.out / 'samples.png'}, {self.out / 'samples.npz'}")
        return 0

    def _model(self) -> Any:
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise FastdiffError(f"device {self.device!r} cannot be used: {reason}") from None
        model: Any = fastdiff.load(self.checkpoint, device=self.device)
        return model.to(memory_format=torch.channels_last)

    def _labels(self, num_classes: int | None, names: list[str]) -> np.ndarray | None:
        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        if num_classes is None:
            if self.classes:
                raise FastdiffError("this model is not class-conditional; leave out --classes")
            return None
        chosen = [_class_number(c, num_classes, names) for c in self.classes] or list(range(num_classes))
        return np.resize(np.array(chosen, dtype=np.int64), self.n)

    def _writable(self) -> None:
        """Told before the work, not after."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastdiffError(f"cannot write to {self.out}: {error.strerror}") from None
        with atomic_path(self.out / ".probe") as probe:
            Path(probe).touch()
        (self.out / ".probe").unlink()

    def _sample(
        self, model: Any, labels: np.ndarray | None, options: dict[str, Any]
    ) -> tuple[np.ndarray, bool]:
        """[N,H,W,C] uint8, and whether Ctrl-C cut it short."""
        done: list[np.ndarray] = []
        batches = fastdiff.sample_batches(
            model,
            self.n,
            classes=None if labels is None else torch.from_numpy(labels),
            seed=self.seed,
            batch_size=self.batch_size,
            progress=self.progress,
            **options,
        )
        interrupted = False
        try:
            for batch in batches:
                done.append(fastdiff.to_uint8(batch).cpu().numpy())
        except KeyboardInterrupt:
            interrupted = True
        return np.concatenate(done) if done else np.empty((0, 1, 1, 1), np.uint8), interrupted

    def _write(self, images: np.ndarray, labels: np.ndarray | None, names: list[str]) -> None:
        arrays = [images] if labels is None else [images, labels[: len(images)]]
        with atomic_path(self.out / "samples.npz") as path, open(path, "wb") as file:
            np.savez(file, *arrays)
        captions = None
        if labels is not None:
            captions = [names[k] if names else str(k) for k in labels[: len(images)]]
        with atomic_path(self.out / "samples.png") as path:
            grid(images, captions).save(path, format="PNG")

    def _ratio(self, model: Any, labels: np.ndarray | None, options: dict[str, Any]) -> str:
        """Both sides sample a few images in turn; eager PyTorch as a user runs it today, in its own layout."""
        n = min(self.n, COMPARE_SAMPLES)
        classes = None if labels is None else torch.from_numpy(labels[:n])
        short = {**options, "steps": COMPARE_STEPS}

        def timed(memory_format: torch.memory_format, backend: Any) -> float:
            model.to(memory_format=memory_format)
            with backend:
                start = time.perf_counter()
                fastdiff.sample(
                    model, n, classes=classes, memory_format=memory_format, progress=False, **short
                ).cpu()
                return time.perf_counter() - start

        sides: dict[str, Callable[[], float]] = {
            "fastdiff": lambda: timed(torch.channels_last, contextlib.nullcontext()),
            "eager": lambda: timed(torch.contiguous_format, use_backend("eager")),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(COMPARE_ROUNDS + 1):
            for name, side in sides.items():
                times[name].append(side())
        medians = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first turn warms up
        ratio = medians["eager"] / medians["fastdiff"]
        return (
            f"{ratio:.2f}x as fast as eager PyTorch {torch.__version__}, same model, same run "
            f"({n} images, {COMPARE_STEPS} steps, medians of {COMPARE_ROUNDS} turns)"
        )


def _class_number(given: str, num_classes: int, names: list[str]) -> int:
    folded = [name.casefold() for name in names]
    if given.casefold() in folded:
        return folded.index(given.casefold())
    if given.isdigit() and int(given) < num_classes:
        return int(given)
    known = ", ".join(names) if names else f"0 to {num_classes - 1}"
    raise FastdiffError(f"unknown class {given!r}; known: {known}")
