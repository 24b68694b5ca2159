"""``fastdiff evaluate``: FID and related metrics of samples, their near copies, or bits per dimension of a model."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

import fastdiff
from fastdiff.choices import usual_sampling
from fastdiff.cli.options import (
    Classes,
    Device,
    DType,
    Eta,
    GuidanceScale,
    Out,
    Preset,
    Progress,
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
    written_by_sample,
)
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.evaluation.features import Features
    from fastdiff.evaluation.images import Images, Shape
    from fastdiff.evaluation.metrics import Comparison
    from fastdiff.evaluation.reference import Reference

SAMPLED = 5000  # images sampled from a checkpoint by default
SUFFIXES = (".safetensors", ".pt")
FILE, BOUND_FILES = "evaluation.json", ("bits_per_dim.json", "bits_per_dim.png")
COPY_FILES = ("copies.json", "nearest.png")


@dataclass(frozen=True)
class Evaluate:
    """Evaluate samples by FID, sFID, Inception Score, precision and recall against the reference DATA.

    Prints the results and writes OUT/evaluation.json. With --copies, tell instead which samples are near copies of an
    image of DATA, in OUT/copies.json and as a picture. With --bits-per-dim, evaluate a model: the bound on its negative
    log-likelihood of DATA, in OUT/bits_per_dim.json and as a plot. docs/evaluation.md explains each number.
    """

    samples: Annotated[Positional[str], arg(metavar="SAMPLES")]
    """Samples: OUT of fastdiff sample, an .npz (arr_0), a folder of images or an IDX file; or a model to sample."""
    reference: Annotated[Path | None, arg(metavar="DATA")] = None
    """Reference to compare with: images as for SAMPLES, or an .npz of statistics, such as ADM's reference batches."""
    metrics: tuple[Literal["fid", "sfid", "is", "precision", "recall"], ...] = ()
    """Metrics to compute. Default: all that can be computed from the reference."""
    features: str | None = None
    """Feature network: "inception" (the default if its weights are given) or a classifier's checkpoint."""
    inception_weights: Path | None = None
    """Local file with Inception's weights, pt_inception-2015-12-05-6726825d.pth; nothing is downloaded."""
    fit: Literal["crop", "pad"] | None = None
    """What to do with images of another size: "crop" scales and crops, "pad" adds a black border. Default: an error."""
    skip_broken: bool = False
    """Skip images of folders and archives that cannot be read, and list them, instead of stopping with an error."""
    save_statistics: Path | None = None
    """Also write the reference's statistics to this .npz, which --reference reads faster than the images."""

    copies: bool = False
    """Find the nearest images of DATA, the training images, and the share of near copies, in place of the metrics."""

    bits_per_dim: bool = False
    """Compute bits per dimension of DATA under the model SAMPLES, in place of the metrics."""
    timestep_respacing: str = ""
    """Subset of the diffusion steps for bits per dimension, such as 250 or "ddim50". Default: all steps."""
    labels: Path | None = None
    """Labels file of IDX images, for bits per dimension. Default: found by its name beside the images."""

    n: Annotated[int | None, arg(aliases=["-n"])] = None
    """Number of images to sample or to read. Default: 5000 from a checkpoint, all images of a file or folder."""
    preset: Preset = None
    weights: Weights = None
    classes: Classes = ()
    sampler: UsualSampler = None
    steps: UsualSteps = None
    eta: Eta = None
    guidance_scale: GuidanceScale = 1.0
    seed: int = 0
    """Random seed of the samples, of the noise for bits per dimension and of the Inception Score's splits."""
    batch_size: Annotated[int, arg(aliases=["-b"])] = 64
    """Number of images processed at a time."""
    out: Out = Path("out")
    device: Device = "auto"
    dtype: DType = "float32"
    progress: Progress = True

    def run(self) -> int:
        for name in ("n", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FastdiffError(f"{name} must be at least 1, got {value}")
        if self.copies:
            return self._find_copies()
        return self._bound() if self.bits_per_dim else self._compare()

    # --- samples against a reference ----------------------------------------------------------------------

    def _compare(self) -> int:
        from fastdiff.backend import usable_device
        from fastdiff.evaluation.features import load_features
        from fastdiff.evaluation.images import Images
        from fastdiff.evaluation.metrics import EvaluationOptions, check_reference, compare
        from fastdiff.evaluation.reference import read_reference

        if self.reference is None and self.metrics != ("is",):
            raise FastdiffError("give --reference DATA to compare with (only --metrics is needs none)")
        if self.save_statistics is not None and self.save_statistics.suffix != ".npz":
            raise FastdiffError(f"--save-statistics writes an .npz, got {self.save_statistics}")
        features = load_features(
            self.features, inception_weights=self.inception_weights, device=usable_device(self.device)
        )
        model = self._load() if self._is_checkpoint else None
        with self._advice_for_colours():
            source = self._read_samples(features) if model is None else self._batches(model, features)
        shape = source.shape if isinstance(source, Images) else _shape(model)
        reference = None
        if self.reference is not None:
            why = "the images it is compared with"
            reference = read_reference(written_by_sample(self.reference), shape, why=why, **self._reading)
            check_reference(reference, features, shape)
        check_folder(self.out, (FILE,))
        samples = source if isinstance(source, Images) else self._sampled(source)
        options = EvaluationOptions(self.batch_size, self.seed, self.device, self.progress)
        keep = self.save_statistics is not None
        found = compare(samples, reference, features, self.metrics or None, options, keep=keep)
        self._report(features, samples, reference, found, model)
        return 0

    @property
    def _is_checkpoint(self) -> bool:
        from fastdiff.checkpoint import bundled

        known = self.samples in bundled() or self.samples in fastdiff.PRESETS
        return self.samples.endswith(SUFFIXES) or (known and not Path(self.samples).exists())

    def _load(self) -> Any:
        return load_denoiser(self.samples, self.preset, self.device, self.dtype, self.weights)

    def _read_samples(self, features: Features | None) -> Images:
        from fastdiff.evaluation.images import read_images

        shape, why = (
            (None, "") if features is None else (features.shape, f"the images that {features.name} looks at")
        )
        path = written_by_sample(Path(self.samples))
        return read_images(path, shape, why=why, **self._reading).first(self.n)

    @contextlib.contextmanager
    def _advice_for_colours(self) -> Iterator[None]:
        """Say what to give for RGB images where nobody has chosen features, and the bundled ones are of grey images."""
        from fastdiff.evaluation.features import ADDRESS
        from fastdiff.evaluation.images import OtherColours

        try:
            yield
        except OtherColours as error:
            if self.features is not None:
                raise
            raise FastdiffError(
                f"{error}; for RGB images give --inception-weights with the file published at {ADDRESS},"
                " or --features with a classifier of your own"
            ) from None

    @property
    def _reading(self) -> dict[str, Any]:
        return {"fit": self.fit, "skip_broken": self.skip_broken, "progress": self.progress}

    def _batches(self, model: Any, features: Features | None) -> Iterator[Tensor]:
        """The images that the checkpoint will make, in batches. Wrong options raise an error here, before sampling."""
        from fastdiff.evaluation.images import OtherColours

        n, channels = self.n or SAMPLED, model.config.in_channels
        if features is not None and features.shape is not None and features.shape[0] < channels:
            raise OtherColours(f"{self.samples} makes RGB images, and {features.name} looks at grey ones")
        batches = fastdiff.sample_batches(
            model,
            n,
            classes=self._labels(model, n),
            seed=self.seed,
            sampler=self.sampler,
            steps=self.steps,
            eta=self.eta,
            guidance_scale=None if self.guidance_scale == 1 else self.guidance_scale,
            batch_size=self.batch_size,
            progress=False,
        )
        free_weights(model)
        return batches

    def _sampled(self, batches: Iterator[Tensor]) -> Images:
        import torch
        from tqdm import tqdm

        from fastdiff.evaluation.images import Images

        images = []
        bar = tqdm(total=self.n or SAMPLED, disable=not self.progress, unit="img", desc="samples")
        with bar, enough_memory(self.device, self.batch_size):
            for batch in batches:
                images.append(fastdiff.to_uint8(batch).movedim(-1, 1).cpu())
                bar.update(len(batch))
        return Images(torch.cat(images), self.samples)

    def _labels(self, model: Any, n: int) -> Tensor | None:
        import numpy as np
        import torch

        num_classes = model.config.num_classes
        if num_classes is None:
            if self.classes:
                raise FastdiffError(f"{self.samples} is not class-conditional; leave out --classes")
            return None
        chosen = [class_number(c, num_classes, list(model.class_names)) for c in self.classes]
        return torch.from_numpy(np.resize(np.array(chosen or range(num_classes), dtype=np.int64), n))

    def _report(
        self,
        features: Features,
        samples: Images,
        reference: Reference | None,
        found: Comparison,
        model: Any,
    ) -> None:
        from fastdiff.bench.machine import device_name
        from fastdiff.evaluation.metrics import METRICS
        from fastdiff.evaluation.reference import write_reference

        about: dict[str, Any] = {"name": samples.name, "images": len(samples)}
        if model is not None:
            sampler, steps = usual_sampling(self.sampler, self.steps, model.diffusion.is_consistent)
            about |= {"sampler": sampler, "steps": steps, "eta": self.eta, "seed": self.seed}
            about |= {
                "weights": self.weights,
                "guidance_scale": self.guidance_scale,
                "classes": list(self.classes),
            }
        against = None if reference is None else {"name": reference.name, "images": _count(reference)}
        content = {
            "features": features.name,
            "note": features.note,
            "samples": about,
            "reference": against,
            "metrics": {
                name: {"value": value, **METRICS[name]._asdict()} for name, value in found.values.items()
            },
            "warnings": found.warnings,
        }
        _write_json(self.out / FILE, content)
        wrote = [str(self.out / FILE)]
        if self.save_statistics is not None and found.statistics is not None:
            write_reference(self.save_statistics, found.statistics)
            wrote.append(str(self.save_statistics))
        print(f"device     {device_name(self.device)}")
        print(f"features   {features.note}")
        print(f"samples    {len(samples)} images of {samples.name}")
        if reference is not None:
            print(f"reference  {_in_words(reference)}")
        for name, value in found.values.items():
            metric = METRICS[name]
            title = f"{metric.title} ({features.label})"
            print(f"{title:<44} {value:>9.4f}  {metric.better} is better; {metric.source}")
        print(f"wrote      {', '.join(wrote)}")
        for warning in found.warnings:
            print(f"fastdiff: {warning}", file=sys.stderr)

    # --- copies of the training images --------------------------------------------------------------------

    def _find_copies(self) -> int:
        from fastdiff.evaluation import copies
        from fastdiff.evaluation.images import Images, read_images

        if self.reference is None or self.bits_per_dim:
            raise FastdiffError("near copies are of the training images: give --reference DATA with --copies")
        model = self._load() if self._is_checkpoint else None
        source = self._read_samples(None) if model is None else self._batches(model, None)
        shape = source.shape if isinstance(source, Images) else _shape(model)
        reference = written_by_sample(self.reference)
        data = read_images(reference, shape, why="the images that they are compared with", **self._reading)
        check_folder(self.out, COPY_FILES)
        samples = source if isinstance(source, Images) else self._sampled(source)
        found = copies.nearest(samples, data, progress=self.progress)
        base = copies.among_themselves(data, progress=self.progress)
        about = copies.summary(found, base, data.names)
        paths = [self.out / name for name in COPY_FILES]
        _write_json(paths[0], {"samples": samples.name, "reference": data.name, **about})
        with atomic_path(paths[1]) as temporary:
            copies.picture(samples, data, found).save(temporary, format="png", optimize=True)
        print(f"samples    {len(samples)} images of {samples.name}")
        print(f"reference  {len(data)} images of {data.name}")
        for share, those in (
            (found, "the samples"),
            (base, "the reference's own images, against the others"),
        ):
            print(f"copies     {share.share:.1%} of {those} (median ratio {share.ratio.median():.2f})")
        print(f"wrote      {', '.join(map(str, paths))}")
        return 0

    # --- a model's bound ----------------------------------------------------------------------------------

    def _bound(self) -> int:
        from fastdiff.bench.machine import device_name
        from fastdiff.evaluation.images import read_images
        from fastdiff.evaluation.likelihood import image_nll
        from fastdiff.evaluation.plots import draw_bound

        if self.reference is None:
            raise FastdiffError("--bits-per-dim needs images: give --reference DATA")
        model = self._load()
        images = read_images(
            written_by_sample(self.reference),
            _shape(model),
            **self._reading,
            why="the images of the model",
            num_classes=model.config.num_classes,
            labels=self.labels,
        ).first(self.n)
        check_folder(self.out, BOUND_FILES)
        found = image_nll(
            model,
            images,
            timestep_respacing=self.timestep_respacing,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=self.progress,
        ).summary()
        about = {"model": self.samples, "reference": images.name, "seed": self.seed}
        _write_json(self.out / BOUND_FILES[0], {**about, **found})
        steps = len(found["timesteps"])
        title = f"{self.samples}: {found['images']} images, {steps} of {model.diffusion.steps} steps"
        draw_bound(found, self.out / BOUND_FILES[1], title)
        spread = "" if found["standard_error"] is None else f" (standard error {found['standard_error']:.4f})"
        print(f"device     {device_name(self.device)}")
        print(f"model      {title}")
        print(f"total      {found['bits_per_dim']:.4f} bits per dimension{spread}; lower is better")
        print(f"prior      {found['prior']:.3g}")
        print(f"last step  {found['vb'][0]:.4f}, -log p(x_0 | x_1)")
        print(f"wrote      {', '.join(str(self.out / name) for name in BOUND_FILES)}")
        return 0


def _shape(model: Any) -> Shape:
    config = model.config
    return config.in_channels, config.image_size, config.image_size


def _count(reference: Reference) -> int | None:
    """Number of images in the reference, or None: statistics do not contain the number they were computed from."""
    held = reference.pool if reference.images is None else reference.images
    return None if held is None else len(held)


def _in_words(reference: Reference) -> str:
    count = _count(reference)
    parts = ["statistics"] if reference.has_statistics else []
    parts += [] if count is None else [f"{count} images"]
    return f"{' and '.join(parts)} of {reference.name}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
