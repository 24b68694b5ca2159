"""``fastdiff sample``: images from a checkpoint, as a captioned grid and as guided-diffusion's npz."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

import fastdiff
from fastdiff.choices import SamplerName, usual_sampling
from fastdiff.cli import INTERRUPTED
from fastdiff.cli.options import (
    AbsoluteTolerance,
    BatchSize,
    Checkpoint,
    Churn,
    ChurnFrom,
    ChurnTo,
    Classes,
    Count,
    Device,
    DType,
    Eta,
    GridSpacing,
    GuidanceScale,
    NoiseFactor,
    Order,
    Out,
    Preset,
    Progress,
    RelativeTolerance,
    Restarts,
    Rho,
    SigmaMax,
    SigmaMin,
    Sigmas,
    UsualSampler,
    UsualSteps,
    Weights,
)
from fastdiff.cli.shared import (
    check_folder,
    class_number,
    enough_memory,
    free_weights,
    load_denoiser,
    process,
)
from fastdiff.errors import FastdiffError
from fastdiff.files import locked, remove_halves

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.cli.batch_files import BatchFiles
    from fastdiff.cli.sample_run import Run

FILES = ("samples.png", "samples.npz")
PREVIEW = 100  # images in the picture at most


@dataclass(frozen=True)
class Sample:
    """Sample images from a diffusion model.

    Prints an estimate of time and memory first. Writes OUT/samples.png (a grid with captions, of at most 100
    images) and OUT/samples.npz (arr_0: images, NHWC uint8; arr_1: labels), which fastdiff evaluate OUT reads. After
    Ctrl-C the finished images are kept, and the same command continues from there. On several GPUs, which share the
    same images: torchrun --nproc-per-node=N -m -- fastdiff sample ...
    """

    checkpoint: Checkpoint = "fashion-mnist"
    preset: Preset = None
    weights: Weights = None
    n: Count = 64
    """Number of images."""
    classes: Classes = ()
    sampler: UsualSampler = None
    steps: UsualSteps = None
    spacing: GridSpacing = None
    sigma_min: SigmaMin = None
    sigma_max: SigmaMax = None
    rho: Rho = None
    sigmas: Sigmas = ()
    eta: Eta = None
    s_churn: Churn = None
    s_tmin: ChurnFrom = None
    s_tmax: ChurnTo = None
    s_noise: NoiseFactor = None
    order: Order = None
    restarts: Restarts = ()
    rtol: RelativeTolerance = None
    atol: AbsoluteTolerance = None
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
    upsampler_sampler: SamplerName | None = None
    """Sampler of the upsampler. Default: SAMPLER."""
    keep_means: bool = False
    """Correct the upsampler's images so that their means over blocks of pixels are exactly the small images."""
    seed: int = 0
    """Random seed. For a given seed, image i does not depend on N and BATCH_SIZE."""
    batch_size: BatchSize = 16
    out: Out = Path("out")
    png: bool = False
    """Also write each image as OUT/images/000000.png, ..."""
    device: Device = "auto"
    dtype: DType = "float32"
    compare: bool = False
    """Afterwards, also time the same model in eager PyTorch, in alternation, and print the ratio."""
    progress: Progress = True

    def run(self) -> int:
        from fastdiff.cli.sample_run import Run

        model = load_denoiser(self.checkpoint, self.preset, self.device, self.dtype, self.weights)
        classifier, upsampler = self._load_classifier(), self._load_upsampler()
        outputs = None if classifier is None else classifier.config.num_outputs
        labels = self._labels(model.config.num_classes or outputs, list(model.class_names))
        sampler = fastdiff.Sampler(model, batch_size=self.batch_size, **self._options)
        enlarger = None if upsampler is None else fastdiff.Sampler(upsampler, **self._upsampler_options)
        guide = self._guide(classifier, labels)
        about = self.n, self.batch_size, self.seed, self.progress, self.keep_means
        run = Run(sampler, enlarger, labels, guide, *about)
        check_folder(self.out, FILES)
        settings = self._settings({"checkpoint": model, "classifier": classifier, "upsampler": upsampler})
        if not self.compare:
            free_weights(model, upsampler)
        first = process()[0] == 0
        with locked(self.out) if first else contextlib.nullcontext():
            return self._sample(run, settings)

    def _sample(self, run: Run, settings: dict[str, Any]) -> int:
        from fastdiff.cli.batch_files import BatchFiles

        rank, processes = process()
        if rank == 0:
            remove_halves(self.out)
        parts = BatchFiles(self.out, settings, self.n, self.batch_size)
        mine = [i for i in range(parts.count) if i % processes == rank and i not in parts]
        count = len(run.rows(mine))
        with enough_memory(self.device, self.batch_size):
            if mine and rank == 0:
                self._estimate(run, count)
            start = time.perf_counter()
            with contextlib.suppress(KeyboardInterrupt):  # finished batches are kept
                for index, images in zip(mine, run.batches(mine), strict=True):
                    parts.write(index, fastdiff.to_uint8(images).cpu().numpy())
                if rank == 0:
                    parts.wait()
            seconds = time.perf_counter() - start
        return self._report(run, parts, seconds, made=count) if rank == 0 else 0

    @property
    def _options(self) -> dict[str, Any]:
        scale = None if self.guidance_scale == 1 else self.guidance_scale
        grid = {name: getattr(self, name) for name in ("spacing", "sigma_min", "sigma_max", "rho")}
        steps = {"steps": self.steps, "sigmas": self.sigmas or None}
        return {**self._method, **grid, **steps, "guidance_scale": scale}

    @property
    def _upsampler_options(self) -> dict[str, Any]:
        sampler = self.upsampler_sampler or self.sampler
        return {**self._method, "sampler": sampler, "steps": self.upsampler_steps or self.steps}

    @property
    def _method(self) -> dict[str, Any]:
        names = ("sampler", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "order", "rtol", "atol")
        return {name: getattr(self, name) for name in names} | {"restarts": self.restarts or None}

    def _settings(self, models: dict[str, Any]) -> dict[str, Any]:
        """The settings that the images depend on, as they are read back from JSON."""
        from fastdiff.cli.batch_files import fingerprint

        free = ("out", "png", "compare", "progress", "device")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        consistent = models["checkpoint"].diffusion.is_consistent
        settings["sampler"], settings["steps"] = usual_sampling(self.sampler, self.steps, consistent)
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
            if self.keep_means:
                raise FastdiffError("--keep-means is of an upsampler's images; give --upsampler with it")
            return None
        model: Any = fastdiff.load(self.upsampler, preset=self.upsampler_preset, device=self.device)
        if getattr(model.config, "low_res", None) is None:
            raise FastdiffError(f"{self.upsampler} enlarges nothing; give one such as 64_256_upsampler.pt")
        return model

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

    def _estimate(self, run: Run, count: int) -> None:
        """Print what ``count`` images will take, and a warning where that is hours."""
        import torch

        from fastdiff.cli.estimate import LONG, advice, estimate

        device = torch.device(self.device)
        try:
            found = estimate(run.works(count), device)
        except FastdiffError:
            return  # the run itself will say what is wrong, and where
        print(f"estimate   {found.in_words()}", flush=True)
        if found.seconds > LONG:
            said = advice(found, str(run.sampler.sampler), run.sampler.calls, self.dtype, device)
            print(f"fastdiff: {said}", file=sys.stderr)

    def _report(self, run: Run, parts: BatchFiles, seconds: float, made: int) -> int:
        from fastdiff.bench.compare import ratio_to_eager
        from fastdiff.bench.machine import backends_in_words, device_name

        count = parts.images_finished
        if not count:
            print("fastdiff: interrupted before any image was finished; nothing written", file=sys.stderr)
            parts.remove()
            return INTERRUPTED
        wrote = self._write(run, parts)
        print(f"device     {device_name(self.device)}")
        print(f"backend    {backends_in_words(self.device.partition(':')[0])}")
        rate = (
            f" in {seconds:.1f} s: {made / seconds:.2f} images/s"
            if made == count
            else f", {made} of them now"
        )
        print(f"sampled    {count} images{rate}, {run.sampler.calls} model calls each")
        print(f"wrote      {wrote}", flush=True)
        if count < self.n:
            print(
                f"fastdiff: interrupted after {count} of {self.n} images; the same command goes on from there",
                file=sys.stderr,
            )
            return INTERRUPTED
        parts.remove()
        if self.compare and process()[1] == 1:
            few = min(self.n, self.batch_size)
            classes = run.classes(range(few))
            print(f"speed      {ratio_to_eager(run.sampler.model, few, classes, self._options)}")
        return 0

    def _write(self, run: Run, parts: BatchFiles) -> str:
        """Write the finished images; returns the files, as they are printed."""
        from fastdiff.cli.sample_files import write_npz, write_pngs, write_preview

        count, model = parts.images_finished, run.sampler.model
        labels = None if run.labels is None else run.labels[:count].numpy()
        picture, npz = (self.out / name for name in FILES)
        # Classes come in turn, so that this many columns show each class in a column of its own.
        kinds = len(self.classes) or (0 if labels is None else int(labels.max()) + 1)
        columns = kinds if 4 <= kinds <= 16 else None
        write_npz(npz, parts.finished(), count, labels)
        names = getattr(model, "class_names", ())
        write_preview(picture, parts.finished(PREVIEW), labels, names, columns)
        preview = f" (the first {PREVIEW})" if count > PREVIEW else ""
        if not self.png:
            return f"{picture}{preview}, {npz}"
        write_pngs(self.out / "images", parts.finished())
        return f"{picture}{preview}, {npz}, {self.out / 'images'}"
