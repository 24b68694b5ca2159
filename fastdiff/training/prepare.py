"""What a run needs before its first step: the data, looked through, and the options that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fastdiff.data.images import ImageData, load_data
from fastdiff.data.readers import Arrays, EncodedImages, read
from fastdiff.data.survey import Survey, count_classes, survey
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.continuous import make_process
from fastdiff.errors import FastdiffError
from fastdiff.models import Classifier, ClassifierConfig, ModelConfig, UNet
from fastdiff.training.config import TrainConfig
from fastdiff.training.consistency import Consistency
from fastdiff.training.setup import architecture, follow, load_pretrained
from fastdiff.training.state import checkpoints, followed
from fastdiff.training.tasks import UPSCALING, Classification, Denoising, Task, Upsampling
from fastdiff.training.timesteps import make_times

# Images that are decoded before the first step, some seconds of work; fastdiff data check takes all.
CHECKED = 1000


@dataclass(frozen=True)
class Prepared:
    """A run's data and networks, and how they were chosen.

    Attributes:
        config: the settings of the run, with every option that follows from the data.
        pretrained: the model to fine-tune.
        found: what the data were seen to be.
        classes: number of images of each class that the model is trained on.
        notes: a sentence for each choice that may surprise.
    """

    config: TrainConfig
    model: ModelConfig
    diffusion: DiffusionConfig
    task: Task
    data: ImageData
    val_data: ImageData | None
    pretrained: UNet | Classifier | None
    found: Survey
    classes: dict[str, int]
    notes: list[str]


def prepare(config: TrainConfig, *, progress: bool = False) -> Prepared:
    """Read and check the data, and choose what the options leave open.

    A run that continues keeps the choices of its last checkpoint, whatever the data are now.

    Args:
        progress: show bars while reading takes longer than a second.

    Raises:
        FastdiffError: bad options, or data that cannot be read.
    """
    pretrained = load_pretrained(config.init or config.teacher, config)
    teacher = pretrained if config.init is None else load_pretrained(config.teacher, config)
    make_task(
        config, *architecture(config, pretrained), teacher
    )  # tells mistakes in the options before data are read
    raw = read(config.data, config.labels, progress=progress, skip_broken=config.skip_broken)
    found = _checked(raw, config.data, progress)
    earlier = checkpoints(config.out)
    if earlier and config.resume == "auto":
        kept = {k: v for k, v in followed(earlier[-1]).items() if getattr(config, k) in (None, ())}
        config, notes = replace(config, **kept), []
    else:
        config, notes = follow(config, raw, found, pretrained)
    model, diffusion = architecture(config, pretrained)
    task = make_task(config, model, diffusion, teacher)
    data = _load(config, model, task, raw, progress)
    config = replace(
        config,
        image_size=model.image_size,
        channels=model.in_channels,
        num_classes=task.num_classes or 0,
        class_names=data.class_names,
        small_size=_small_size(config, model),
    )
    val_data = None
    if config.val_data is not None:
        val_raw = read(config.val_data, config.val_labels, progress=progress, skip_broken=config.skip_broken)
        _checked(val_raw, config.val_data, progress)
        fit = "crop" if config.fit == "random-crop" else config.fit
        val_config = replace(config, data=config.val_data, labels=config.val_labels, fit=fit)
        val_data = _load(val_config, model, task, val_raw, progress)
    classes = count_classes(None if data.labels is None else data.labels.numpy(), data.class_names)
    return Prepared(config, model, diffusion, task, data, val_data, pretrained, found, classes, notes)


def make_task(
    config: TrainConfig,
    model: ModelConfig,
    diffusion: DiffusionConfig,
    teacher: UNet | Classifier | None = None,
) -> Task:
    """The task that the options name, for a network of this kind.

    Args:
        teacher: the model that ``config.teacher`` names.

    Raises:
        FastdiffError: options that belong to another task.
    """
    process = make_process(diffusion)
    make_times(config, process)  # tells mistakes in its options
    for name in ("small_size", "low_res_noise"):
        if getattr(config, name) and not _enlarges(model):
            raise FastdiffError(f"{name} is an upsampler's option, and this model enlarges nothing")
    if config.task == "consistency":
        if isinstance(model, ClassifierConfig) or model.low_res is not None:
            raise FastdiffError("consistency training is for denoisers, and this network is none")
        return Consistency(config, process, model, teacher)
    if isinstance(model, ClassifierConfig):
        return Classification(config, model, process)
    if not config.noised:
        raise FastdiffError("only a classifier can be trained without noise; leave out --no-noised")
    if diffusion.parametrisation == "consistency":
        raise FastdiffError(
            "a consistency model is not trained by denoising; give --task consistency, or --parametrisation edm to "
            "train its network as an EDM model"
        )
    if model.low_res is None:
        return Denoising(config, process, model)
    small_size = config.small_size or model.image_size // UPSCALING
    if not 1 <= small_size < model.image_size:
        raise FastdiffError(
            f"small_size must be at least 1 and below the image size, {model.image_size}, got {small_size}"
        )
    return Upsampling(config, process, model, small_size)


def _checked(raw: Arrays | EncodedImages, path: Path, progress: bool) -> Survey:
    """What the data are, by a part of them that is decoded now, so that no late step finds them broken.

    Raises:
        FastdiffError: images that cannot be read.
    """
    found = survey(raw, CHECKED, progress=progress)
    if found.broken:
        raise FastdiffError(
            f"{found.broken[0]}; {len(found.broken)} of the {found.looked_at} images that were checked cannot be "
            f"read: --skip-broken leaves them out, fastdiff data check {path} lists all"
        )
    return found


def _small_size(config: TrainConfig, model: ModelConfig) -> int | None:
    return (config.small_size or model.image_size // UPSCALING) if _enlarges(model) else None


def _enlarges(model: ModelConfig) -> bool:
    return not isinstance(model, ClassifierConfig) and model.low_res is not None


def _load(
    config: TrainConfig, model: ModelConfig, task: Task, raw: Arrays | EncodedImages, progress: bool
) -> ImageData:
    return load_data(
        config.data,
        image_size=model.image_size,
        channels=model.in_channels,
        num_classes=task.num_classes,
        labels=config.labels,
        class_names=config.class_names,
        fit=config.fit,
        seed=config.seed,
        progress=progress,
        raw=raw,
    )
