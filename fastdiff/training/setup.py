"""From a TrainConfig to its model and diffusion."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from fastdiff.checkpoint import load
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import parse_json
from fastdiff.models import Classifier, UNet
from fastdiff.models.config import ClassifierConfig, ModelConfig, UNetConfig
from fastdiff.training.config import DEFAULT_PRESET, TrainConfig
from fastdiff.training.pretrained import at_size

C = TypeVar("C", bound=UNetConfig | ClassifierConfig | DiffusionConfig)
_KINDS = ("unet", "classifier")


def load_pretrained(config: TrainConfig) -> UNet | Classifier | None:
    """The model that a run is to fine-tune, on the CPU, of several sets of weights the average; None without ``init``.

    Raises:
        FastdiffError: no such checkpoint, or one that does not say which diffusion it belongs to.
    """
    if config.init is None:
        return None
    given: dict[str, Any] = {}
    if config.preset != DEFAULT_PRESET:
        preset, diffusion = _preset(config.preset)
        given = {**vars(preset), "diffusion": diffusion}
    model = load(config.init, **given)
    if model.diffusion is None:
        raise FastdiffError(
            f"{config.init} does not say which diffusion it was trained with; give the --preset that it belongs to"
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
    if pretrained is not None:
        model, diffusion = pretrained.config, pretrained.diffusion
        model = at_size(model, config.image_size or model.image_size)
    else:
        model, diffusion = _preset(config.preset)
    changes: dict[str, Any] = {}
    if config.image_size is not None:
        changes["image_size"] = config.image_size
    if isinstance(model, ClassifierConfig):
        return _classifier(model, config, changes), diffusion
    if config.channels is not None:
        changes |= {"in_channels": config.channels, "out_channels": config.channels}
    if config.num_classes == 0:
        changes |= {"num_classes": None, "null_label": False}
    elif config.num_classes is not None:
        changes["num_classes"] = config.num_classes
    return replace(model, **changes, learn_sigma=diffusion.learns_variance), diffusion


def _classifier(model: ClassifierConfig, config: TrainConfig, changes: dict[str, Any]) -> ClassifierConfig:
    if config.num_classes == 0:
        raise FastdiffError("a classifier needs classes; leave out --num-classes 0")
    if config.channels is not None:
        changes["in_channels"] = config.channels
    if config.num_classes is not None:
        changes["num_outputs"] = config.num_classes
    return replace(model, **changes)


def _preset(name: str) -> tuple[ModelConfig, DiffusionConfig]:
    return _from_file(Path(name)) if name.endswith(".json") else _from_zoo(name)


def _from_zoo(name: str) -> tuple[ModelConfig, DiffusionConfig]:
    from fastdiff.zoo import PRESETS

    if name not in PRESETS:
        raise FastdiffError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}, or a .json file")
    return PRESETS[name].model, PRESETS[name].diffusion


def _from_file(path: Path) -> tuple[ModelConfig, DiffusionConfig]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FastdiffError(f"cannot read {path}: {error}") from None
    if (
        not isinstance(content, dict)
        or not content.keys() <= {"kind", "model", "diffusion"}
        or "model" not in content
        or content.get("kind", "unet") not in _KINDS
    ):
        raise FastdiffError(
            f'{path} must hold {{"kind": "unet" or "classifier", "model": {{...}}, "diffusion": {{...}}}}'
        )
    kind = ClassifierConfig if content.get("kind") == "classifier" else UNetConfig
    model = _build(kind, content["model"], path)
    return model, _build(DiffusionConfig, content.get("diffusion", {}), path)


def _build(kind: type[C], options: Any, path: Path) -> C:
    known = [field.name for field in fields(kind)]
    if not isinstance(options, dict) or not options.keys() <= set(known):
        raise FastdiffError(f"{path}: options of {kind.__name__} are {', '.join(known)}; got {options}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise FastdiffError(f"{path}: {error}") from None
