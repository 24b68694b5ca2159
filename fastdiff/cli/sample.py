"""``fastdiff sample``: images from a checkpoint, as a captioned grid and as guided-diffusion's npz."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

import fastdiff
from fastdiff.choices import SamplerName
from fastdiff.cli import INTERRUPTED
from fastdiff.cli.options import (
    BatchSize,
    Checkpoint,
    Classes,
    Count,
    Device,
    DType,
    Eta,
    GuidanceScale,
    Out,
    Preset,
    Progress,
    Steps,
    Weights,
)
from fastdiff.cli.shared import check_folder, class_number, load_denoiser, process
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path, locked, remove_halves, writing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fastdiff.cli.batch_files import BatchFiles

FILES = ("samples.png", "samples.npz")


@dataclass(frozen=True)
class Sample:
    """Sample images from a diffusion model.

    Writes OUT/samples.png (a grid with captions) and OUT/samples.npz (arr_0: images, NHWC uint8; arr_1: labels).
    After Ctrl-C the finished images are kept, and the same command continues from there. On several GPUs, which share
    the same images: torchrun --nproc-per-node=N -m -- fastdiff sample ...
    """

    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    n: Count = 64
    """Number of images."""
    classes: Classes = ()
    sampler: SamplerName = "dpmpp"
    """Sampling method; "dpmpp" is DPM-Solver++ 2M."""
    steps: Steps = "20"
    eta: Eta = 0.0
    guidance_scale: GuidanceScale = 1.0
    classifier: str | None = None
    """Checkpoint of a noisy-image classifier for classifier guidance, such as 256x256_classifier.pt."""
    classifier_preset: str | None = None
    """Configuration of the classifier, for a file that does not contain it."""
    classifier_scale: Annotated[float, arg(aliases=["--scale"])] = 1.0
    """Scale of classifier guidance. 1: Bayes' rule; above 1: stronger."""
    upsampler: str | None = None
    """Checkpoint of a super-resolution model that enlarges the images, such as 64_256_upsampler.pt."""
    upsampler_preset: str | None = None
    """Configuration of the upsampler, for a file that does not contain it."""
    upsampler_steps: str | None = None
    """Number of sampling steps of the upsampler. Default: STEPS."""
    seed: int = 0
    """Random seed. For a given seed, image i does not depend on N and BATCH_SIZE."""
    batch_size: BatchSize = 16
    out: Out = Path("out")
    png: bool = False
    """Also write each image as OUT/images/000000.png, ..."""
    device: Device = "auto"
    dtype: DType = "float32"
    compare: bool = True
    """Also time the same model in eager PyTorch, in alternation, and print the ratio."""
    progress: Progress = True

    def run(self) -> int:
        import torch

        from fastdiff.cli.batch_files import BatchFiles
        from fastdiff.ops.philox import sample_seeds

        model = load_denoiser(self.checkpoint, self.preset, self.device, self.dtype, self.weights)
        names = list(model.class_names)
        classifier = self._load_classifier()
        outputs = None if classifier is None else classifier.config.num_outputs
        labels = self._labels(model.config.num_classes or outputs, names)
        options: dict[str, Any] = {
            "sampler": self.sampler,
            "steps": self.steps,
            "eta": self.eta,
            "guidance_scale": None if self.guidance_scale == 1 else self.guidance_scale,
        }
        fastdiff.Sampler(model, batch_size=self.batch_size, **options)  # checks every option
        upsampler = self._load_upsampler()
        guide, enlarge = self._guide(classifier, labels), self._enlarger(upsampler)
        check_folder(self.out, FILES)
        settings = self._settings({"checkpoint": model, "classifier": classifier, "upsampler": upsampler})
        rank, processes = process()
        with locked(self.out) if rank == 0 else contextlib.nullcontext():
            if rank == 0:
                remove_halves(self.out)
            parts, seeds = (
                BatchFiles(self.out, settings, -(-self.n // self.batch_size)),
                sample_seeds(self.n, self.seed),
            )
            mine = [i for i in range(parts.count) if i % processes == rank and i not in parts]
            numbers = torch.arange(self.n).split(self.batch_size)
            rows = torch.cat([numbers[i] for i in mine] or [seeds[:0]])
            start = time.perf_counter()
            batches: Iterator[Tensor] = iter(())
            if mine:
                batches = fastdiff.sample_batches(
                    model,
                    len(rows),
                    classes=None if labels is None or model.config.num_classes is None else labels[rows],
                    seeds=seeds[rows],
                    condition=None if guide is None else guide.map(lambda t: t[rows]),
                    batch_size=self.batch_size,
                    progress=self.progress,
                    **options,
                )
            self._finish(parts, mine, batches, labels, enlarge)
            seconds = time.perf_counter() - start
            if rank:
                return 0
            return self._report(model, parts, labels, names, options, seconds, made=len(rows))

    def _settings(self, models: dict[str, Any]) -> dict[str, Any]:
        """The settings that the images depend on, as they are read back from JSON."""
        from fastdiff.cli.batch_files import fingerprint

        free = ("out", "png", "compare", "progress", "device")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        contents = {f"content of {name}": model and fingerprint(model) for name, model in models.items()}
        return json.loads(json.dumps({**settings, **contents}))

    def _load_classifier(self) -> Any:
        from fastdiff.models import ClassifierConfig

        if self.classifier is None:
            return None
        classifier: Any = fastdiff.load(self.classifier, preset=self.classifier_preset, device=self.device)
        if not isinstance(classifier.config, ClassifierConfig):
            raise FastdiffError(f"{self.classifier} is no classifier; give one such as 64x64_classifier.pt")
        return classifier.eval().requires_grad_(False)

    def _guide(self, classifier: Any, labels: Tensor | None) -> fastdiff.Guide | None:
        from fastdiff.sampling.cascade import classifier_log_probability

        if classifier is None or labels is None:
            return None
        outputs = classifier.config.num_outputs
        if int(labels.max()) >= outputs:
            raise FastdiffError(f"the classifier knows classes 0 to {outputs - 1}, got {int(labels.max())}")
        return fastdiff.Guide(classifier_log_probability(classifier), self.classifier_scale, {"y": labels})

    def _load_upsampler(self) -> Any:
        if self.upsampler is None:
            return None
        model: Any = fastdiff.load(self.upsampler, preset=self.upsampler_preset, device=self.device)
        if getattr(model.config, "low_res", None) is None:
            raise FastdiffError(f"{self.upsampler} enlarges nothing; give one such as 64_256_upsampler.pt")
        return model

    def _enlarger(self, model: Any) -> Any:
        """The function enlarge(images, first, labels) for a batch that begins with image ``first``, or None."""
        from fastdiff.sampling.cascade import upsampler_seeds

        if model is None:
            return None
        options = {"sampler": self.sampler, "eta": self.eta, "steps": self.upsampler_steps or self.steps}
        fastdiff.Sampler(model, **options)

        def enlarge(images: Tensor, first: int, labels: Tensor | None) -> Tensor:
            classes = None if model.config.num_classes is None else labels
            seeds = upsampler_seeds(len(images), self.seed, first)
            return fastdiff.upsample(
                model, images, classes=classes, seeds=seeds, progress=self.progress, **options
            )

        return enlarge

    def _finish(
        self,
        parts: BatchFiles,
        mine: list[int],
        batches: Iterator[Tensor],
        labels: Tensor | None,
        enlarge: Any,
    ) -> None:
        """Write each batch as it is finished, until the last or Ctrl-C."""
        import torch

        try:
            with contextlib.suppress(KeyboardInterrupt):
                for index, batch in zip(mine, batches, strict=True):
                    first = index * self.batch_size
                    if enlarge is not None:
                        chosen = None if labels is None else labels[first : first + len(batch)]
                        batch = enlarge(batch, first, chosen)
                    parts.write(index, fastdiff.to_uint8(batch).cpu().numpy())
                if process()[0] == 0:
                    parts.wait()
        except torch.OutOfMemoryError:
            raise FastdiffError(
                f"{self.device} has no memory for {self.batch_size} images at a time; give a smaller --batch-size"
            ) from None

    def _report(
        self, model, parts: BatchFiles, labels, names, options: dict[str, Any], seconds: float, made: int
    ) -> int:
        import numpy as np

        from fastdiff.bench.compare import ratio_to_eager
        from fastdiff.bench.machine import backends_in_words, device_name

        finished = parts.finished()
        if not finished:
            print("fastdiff: interrupted before any image was finished; nothing written", file=sys.stderr)
            parts.remove()
            return INTERRUPTED
        images = np.concatenate(finished)
        self._write(images, None if labels is None else labels[: len(images)].numpy(), names)
        print(f"device     {device_name(self.device)}")
        print(f"backend    {backends_in_words(self.device.partition(':')[0])}")
        rate = (
            f" in {seconds:.1f} s: {made / seconds:.2f} images/s"
            if made == len(images)
            else f", {made} of them now"
        )
        print(f"sampled    {len(images)} images{rate}")
        print(f"wrote      {', '.join(str(self.out / name) for name in FILES)}", flush=True)
        if len(images) < self.n:
            print(
                f"fastdiff: interrupted after {len(images)} of {self.n} images; the same command goes on from there",
                file=sys.stderr,
            )
            return INTERRUPTED
        parts.remove()
        if self.compare and process()[1] == 1:
            few = min(self.n, self.batch_size)
            classes = None if labels is None or model.config.num_classes is None else labels[:few]
            print(f"speed      {ratio_to_eager(model, few, classes, options)}")
        return 0

    def _labels(self, num_classes: int | None, names: list[str]) -> Tensor | None:
        """[N] int64: the chosen classes in turn, those of the model or else of the classifier that guides it."""
        import numpy as np
        import torch

        if self.n < 1:
            raise FastdiffError(f"n must be at least 1, got {self.n}")
        if num_classes is None:
            if self.classes:
                raise FastdiffError(f"{self.checkpoint} is not class-conditional; leave out --classes")
            return None
        chosen = [class_number(c, num_classes, names) for c in self.classes] or list(range(num_classes))
        return torch.from_numpy(np.resize(np.array(chosen, dtype=np.int64), self.n))

    def _write(self, images: np.ndarray, labels: np.ndarray | None, names: list[str]) -> None:
        import numpy as np
        from PIL import Image

        from fastdiff.images import grid

        captions = None if labels is None else [names[k] if names else str(k) for k in labels]
        # Classes come in turn, so that this many columns show each class in a column of its own.
        kinds = len(self.classes) or (0 if labels is None else int(labels.max()) + 1)
        columns = kinds if 4 <= kinds <= 16 else None
        with atomic_path(self.out / "samples.npz") as path, open(path, "wb") as file:
            np.savez(file, *([images] if labels is None else [images, labels]))
        if self.png:
            with writing(self.out / "images"):
                (self.out / "images").mkdir(exist_ok=True)
            for i, image in enumerate(images):
                with atomic_path(self.out / "images" / f"{i:06d}.png") as path:
                    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                        path, format="PNG"
                    )
        with atomic_path(self.out / "samples.png") as path:
            grid(images, captions, columns=columns).save(path, format="PNG")
