"""From a TrainConfig and its data to the model and diffusion of a run."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fastdiff.checkpoint import load
from fastdiff.data.images import whole_labels
from fastdiff.data.readers import Arrays, EncodedImages
from fastdiff.data.survey import Survey
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import parse_json
from fastdiff.models import Classifier, UNet
from fastdiff.models.config import ClassifierConfig, ModelConfig, UNetConfig
from fastdiff.training.config import DEFAULT_PRESET, TrainConfig
from fastdiff.training.pretrained import at_size

C = TypeVar("C", bound=UNetConfig | ClassifierConfig | DiffusionConfig)
_KINDS = ("unet", "classifier")
LARGEST = 64  # pixels: the size up to which images are trained at their own, if the preset's is smaller


class _Base(NamedTuple):
    """A preset or .json file, and the options of the model that come before the data's."""

    model: ModelConfig
    diffusion: DiffusionConfig
    fixed: frozenset[str] = frozenset()


def load_pretrained(source: str | None, config: TrainConfig) -> UNet | Classifier | None:
    """The model of a checkpoint that a run begins with, on the CPU, of several sets of weights the average.

    Args:
        source: the checkpoint, or the name of a bundled model; None: none.
        config: whose preset says what the checkpoint does not.

    Raises:
        FastdiffError: no such checkpoint, or one that does not say which diffusion it belongs to.
    """
    if source is None:
        return None
    given: dict[str, Any] = {}
    if config.preset != DEFAULT_PRESET:
        preset = _preset(config.preset)
        given = {**vars(preset.model), "diffusion": preset.diffusion}
    model = load(source, **given)
    if model.diffusion is None:
        raise FastdiffError(
            f"{source} does not say which diffusion it was trained with; give the --preset that it belongs to"
        )
    return model


def architecture(
    config: TrainConfig, pretrained: UNet | Classifier | None = None
) -> tuple[ModelConfig, DiffusionConfig]:
    """The preset (or .json file) of a run, with the run's overrides.

    Args:
        pretrained: the model to fine-tune, whose architecture then is the preset.

    Raises:
        FastdiffError: an unknown preset, a broken file, an override that does not fit the model.
    """
    model, diffusion, _ = _base(config, pretrained)
    if config.parametrisation not in (None, diffusion.parametrisation):
        # A network tells times apart that are as many as those of the other kinds: a flow's are scaled to 1000.
        diffusion = DiffusionConfig(
            parametrisation=config.parametrisation, rescale_timesteps=config.parametrisation == "flow"
        )
    diffusion = replace(diffusion, few_steps=config.task == "consistency")
    if pretrained is not None:
        model = at_size(model, config.image_size or model.image_size)
    changes: dict[str, Any] = {}
    if config.image_size not in (None, model.image_size):
        changes["image_size"] = config.image_size
        changes["attention_resolutions"] = _attention(model, config.image_size)
    if isinstance(model, ClassifierConfig):
        return _classifier(model, config, changes), diffusion
    if config.channels is not None:
        changes |= {"in_channels": config.channels, "out_channels": config.channels}
    if config.num_classes == 0:
        changes |= {"num_classes": None, "null_label": False}
    elif config.num_classes is not None:
        changes["num_classes"] = config.num_classes
        if model.num_classes is None:  # the preset says nothing of guidance, and this label allows it
            changes["null_label"] = True
    return replace(model, **changes, learn_sigma=diffusion.learns_variance), diffusion


def follow(
    config: TrainConfig,
    data: Arrays | EncodedImages,
    found: Survey,
    pretrained: UNet | Classifier | None = None,
) -> tuple[TrainConfig, list[str]]:
    """The config with image size, channels and classes as in the data, where neither it nor a .json file gives them.

    A model to fine-tune keeps its image size, its colours and, if the data only number as many classes, their names.

    Returns:
        The config, and a sentence for each choice that may surprise.

    Raises:
        FastdiffError: labels from which the number of classes cannot be told; a classifier without classes.
    """
    base, chosen, notes = _base(config, pretrained), dict[str, Any](), list[str]()
    if config.channels is None and "in_channels" not in base.fixed:
        chosen["channels"] = max(found.channels, base.model.in_channels if pretrained else 1)
    if config.image_size is None and "image_size" not in base.fixed:
        chosen["image_size"] = _size(config, base.model, found, notes)
    if config.num_classes is None and not base.fixed & {"num_classes", "num_outputs"}:
        chosen["num_classes"] = _num_classes(config, base.model, data, notes)
    count, names = chosen.get("num_classes", config.num_classes), pretrained.class_names if pretrained else ()
    if len(names) == count and not config.class_names and not data.class_names:
        chosen["class_names"] = names
    return replace(config, **chosen), notes


def _size(config: TrainConfig, model: ModelConfig, found: Survey, notes: list[str]) -> int:
    """The data's size in pixels, down (to pad: up) to a multiple that the network can halve, and not above a limit."""
    multiple, limit = 2 ** (len(model.channel_mult) - 1), max(model.image_size, LARGEST)
    if config.fit == "pad":
        size = -(-found.longest_side // multiple) * multiple
    else:
        size = max(min(found.shorter_side, limit) // multiple, 1) * multiple
    if found.shorter_side > limit:
        notes.append(
            f"the images are larger, and {size} is the largest size that is chosen by itself; give --image-size for"
            f" another multiple of {multiple} (twice the size takes four times as long)"
        )
    return size


def _num_classes(
    config: TrainConfig, model: ModelConfig, data: Arrays | EncodedImages, notes: list[str]
) -> int:
    if config.class_names:
        return len(config.class_names)
    count, needed = len(data.class_names), isinstance(model, ClassifierConfig)
    if data.labels is not None and not count:
        count = int(whole_labels(data, config.data).max(initial=-1)) + 1
        if count > len(data):
            raise FastdiffError(
                f"{config.data} has labels up to {count - 1} on {len(data)} images; "
                f"give --num-classes {count}, or --num-classes 0 to train without them"
            )
    if count < 2 and needed:
        given = f"the one class {data.class_names[0]}" if data.class_names else "no classes"
        raise FastdiffError(f"a classifier needs images of at least two classes; {config.data} has {given}")
    if count == 1:
        notes.append("all images are of one class, so the model is trained without classes")
    return count if count > 1 else 0


def _attention(model: ModelConfig, size: int | None) -> tuple[int, ...]:
    """The resolutions with attention of a network of another image size: those of its levels that are nearest.

    A preset's sizes are powers of two; at 28 pixels no level has 8, and 7 takes its place.
    """
    levels = [int(size or 0) >> i for i in range(len(model.channel_mult))]

    def nearest(resolution: int) -> int:
        level = min(levels, key=lambda own: abs(math.log2(max(own, 1) / resolution)))
        return level if resolution < 2**0.5 * level and level < 2**0.5 * resolution else resolution

    return tuple(nearest(resolution) for resolution in model.attention_resolutions)


def _classifier(model: ClassifierConfig, config: TrainConfig, changes: dict[str, Any]) -> ClassifierConfig:
    if config.num_classes == 0:
        raise FastdiffError("a classifier needs classes; leave out --num-classes 0")
    if config.channels is not None:
        changes["in_channels"] = config.channels
    if config.num_classes is not None:
        changes["num_outputs"] = config.num_classes
    return replace(model, **changes)


def _base(config: TrainConfig, pretrained: UNet | Classifier | None) -> _Base:
    if pretrained is not None:
        return _Base(pretrained.config, pretrained.diffusion, frozenset({"image_size"}))
    return _preset(config.preset)


def _preset(preset: str) -> _Base:
    if preset.endswith(".json"):
        return _from_file(Path(preset))
    from fastdiff.zoo import PRESETS

    if preset not in PRESETS:
        raise FastdiffError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}, or a .json file")
    return _Base(PRESETS[preset].model, PRESETS[preset].diffusion)


def _from_file(path: Path) -> _Base:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FastdiffError(f"cannot read {path}: {error}") from None
    if (
        not isinstance(content, dict)
        or not content.keys() <= {"kind", "model", "diffusion"}
        or not isinstance(content.get("model"), dict)
        or content.get("kind", "unet") not in _KINDS
    ):
        raise FastdiffError(
            f'{path} must hold {{"kind": "unet" or "classifier", "model": {{...}}, "diffusion": {{...}}}}'
        )
    kind = ClassifierConfig if content.get("kind") == "classifier" else UNetConfig
    options = {"image_size": LARGEST, **content["model"]}
    if kind is UNetConfig and "in_channels" in options:
        options = {"out_channels": options["in_channels"], **options}
    diffusion = _build(DiffusionConfig, content.get("diffusion", {}), path)
    return _Base(_build(kind, options, path), diffusion, frozenset(content["model"]))


def _build(kind: type[C], options: Any, path: Path) -> C:
    known = [field.name for field in fields(kind)]
    if not isinstance(options, dict) or not options.keys() <= set(known):
        raise FastdiffError(f"{path}: options of {kind.__name__} are {', '.join(known)}; got {options}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise FastdiffError(f"{path}: {error}") from None
