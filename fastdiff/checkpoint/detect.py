"""Detecting the network of a file of bare weights: a preset with the same shapes, or a configuration inferred."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.models import ClassifierConfig, ModelConfig, UNetConfig, build_model
from fastdiff.zoo import PRESETS

_LOG = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
_UNTOLD = {"image_size", "num_heads", "num_head_channels"}  # leave no trace in the weights' shapes


@dataclass(frozen=True)
class Found:
    """A network's configuration and, where they are known, the diffusion and the classes it was trained with."""

    model: ModelConfig
    diffusion: DiffusionConfig | None
    class_names: tuple[str, ...] = ()


def detect(file: Path, shapes: Shapes, options: dict[str, Any]) -> Found:
    """The configuration that fits ``shapes``.

    A file with the shapes of a published model is that model, unless ``options`` name image size or heads. Published
    models of one network but of several kinds of diffusion are told apart by the file's name alone; under another name
    the diffusion is not known, and the log says which presets there are.
    Otherwise levels, widths, depths and switches are read off the weights, while image size and heads, which
    leave no trace in them, must be in ``options``.

    Raises:
        FastdiffError: no ADM-class network, an unknown option, or a setting that must be given in ``options``.
    """
    if "time_embed.0.weight" not in shapes or "input_blocks.0.0.weight" not in shapes:
        raise FastdiffError(
            f"{file} is not an ADM-class model: it has no time_embed.0.weight and input_blocks.0.0.weight"
        )
    kind = UNetConfig if "output_blocks.0.0.in_layers.0.weight" in shapes else ClassifierConfig
    _check_names(kind, options)
    planar = any(_is_planar(name, shape) for name, shape in shapes.items())
    shapes = {name: shape[:3] if _is_planar(name, shape) else shape for name, shape in shapes.items()}
    if not options.keys() & _UNTOLD:
        fitting = [
            name
            for name, preset in PRESETS.items()
            if preset.planar_attention == planar
            and not preset.diffusion.few_steps  # which fastdiff's own files say, and bare weights are not known to be
            and _could_be(preset.model, shapes)
            and _shapes_of(replace(preset.model, dropout=0.0)) == shapes
        ]
        if fitting:
            return _published(file, fitting, options)
    if planar:
        options = {"use_new_attention_order": True, **options}
    missing = [] if "image_size" in options else ["image_size=..."]
    if any(".qkv." in name for name in shapes) and not {"num_heads", "num_head_channels"} & options.keys():
        missing.append("num_heads=... or num_head_channels=...")
    try:
        depths = _depths(shapes, options.get("num_res_blocks"))
        if depths is None:
            missing.append("num_res_blocks=...")
        if missing:
            raise FastdiffError(
                f"{file} has the weights of no published model; give what they do not tell: {' and '.join(missing)}"
            )
        return Found(_read_off(file, kind, shapes, depths or (), options), None)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        lacking = f"it lacks {error}" if isinstance(error, KeyError) else "its weights have unknown shapes"
        raise FastdiffError(f"{file} is not a whole ADM-class model: {lacking}") from None


def _published(file: Path, fitting: list[str], options: dict[str, Any]) -> Found:
    """The one of several published models of the same shapes that the file's name tells, else the first."""
    named = [name for name in fitting if Path(str(PRESETS[name].released)).stem == file.stem]
    preset = PRESETS[(named or fitting)[0]]
    model = with_options(preset.model, options)
    if not named and len({PRESETS[name].diffusion for name in fitting}) > 1:
        _LOG.warning(
            "%s: the weights do not tell which diffusion they belong to; give preset, one of %s",
            file,
            ", ".join(fitting),
        )
        return Found(model, None)
    return Found(model, preset.diffusion)


def of_tokens(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose projections of attention are 2-d convolutions, [3C, C, 1, 1], as they are here, [3C, C, 1]."""
    return {name: t.squeeze(-1) if _is_planar(name, tuple(t.shape)) else t for name, t in tensors.items()}


def _is_planar(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith((".qkv.weight", ".proj_out.weight")) and len(shape) == 4 and shape[2:] == (1, 1)


def with_options(model: ModelConfig, options: dict[str, Any]) -> ModelConfig:
    """The configuration with some fields replaced. ``num_heads`` alone also replaces ``num_head_channels``."""
    _check_names(type(model), options)
    fixed_heads = "num_heads" in options and "num_head_channels" not in options
    return replace(model, **({"num_head_channels": -1} if fixed_heads else {}), **options)


def _check_names(kind: type[ModelConfig], options: dict[str, Any]) -> None:
    known = [field.name for field in fields(kind)]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise FastdiffError(f"unknown option {unknown!r}; {kind.__name__} has {', '.join(known)}")


def _could_be(model: ModelConfig, shapes: Shapes) -> bool:
    """A quick check of some shapes, so that few presets have to be built."""
    channels = model.in_channels * (2 if getattr(model, "low_res", None) else 1)
    first = (model.level_channels[0], channels, 3, 3)
    time = (model.embed_channels, model.model_channels)
    return shapes["input_blocks.0.0.weight"] == first and shapes["time_embed.0.weight"] == time


@functools.lru_cache(maxsize=8)
def _shapes_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_model(model).state_dict().items()}


def _read_off(
    file: Path, kind: type, shapes: Shapes, depths: tuple[int, ...], options: dict[str, Any]
) -> ModelConfig:
    width, size = shapes["time_embed.0.weight"][1], options["image_size"]
    size = size if isinstance(size, int) else 0  # the configuration will complain
    firsts = [1 + level + sum(depths[:level]) for level in range(len(depths))]  # block of each level
    widths = [shapes[f"input_blocks.{i}.0.out_layers.0.weight"][0] for i in firsts]
    attends = [level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes]
    updown = len(firsts) > 1 and all(
        f"input_blocks.{i - 1}.0.in_layers.0.weight" in shapes for i in firsts[1:]
    )
    found: dict[str, Any] = {
        "model_channels": width,
        "channel_mult": tuple(_number(c / width) for c in widths),
        "num_res_blocks": depths[0] if len(set(depths)) == 1 else depths,
        "attention_resolutions": tuple(size >> level for level in attends if size >> level),
        "use_scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0]
        == 2 * shapes["input_blocks.1.0.out_layers.0.weight"][0],
        "resblock_updown": updown,
        "conv_resample": updown or any(name.endswith(".0.op.weight") for name in shapes),
        "in_channels": shapes["input_blocks.0.0.weight"][1],
    }
    if kind is UNetConfig:
        found |= _outside(shapes, options)
    else:
        found |= _head(file, shapes)
    return kind(**{**found, **options})


def _outside(shapes: Shapes, options: dict[str, Any]) -> dict[str, Any]:
    """Input and output channels and classes. Twice the channels of grey or colour images means super-resolution."""
    given, out = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    low_res = options.get("low_res", "bilinear" if given in (2, 6) and out in (given, given // 2) else None)
    channels = given // 2 if low_res else given
    labels = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None
    return {
        "in_channels": channels,
        "out_channels": channels,
        "learn_sigma": out == 2 * channels,
        "low_res": low_res,
        "num_classes": labels - 1 if labels and options.get("null_label") else labels,
    }


def _head(file: Path, shapes: Shapes) -> dict[str, Any]:
    heads = {  # the last parameter of each pooling head
        "out.2.c_proj.weight": "attention",
        "out.3.weight": "adaptive" if "out.1.weight" not in shapes else "spatial_v2",
        "out.2.weight": "spatial",
    }
    last = next((name for name in heads if name in shapes), None)
    if last is None:
        raise FastdiffError(f"{file} has neither a U-Net's output_blocks nor a classifier's out")
    return {"pool": heads[last], "num_outputs": shapes[last][0]}


def _number(ratio: float) -> float:
    return int(ratio) if ratio == int(ratio) else ratio


def _depths(shapes: Shapes, given: Any) -> tuple[int, ...] | None:
    """Residual blocks of each level, from the numbering of the blocks; None if only ``given`` could tell."""
    down, up = _count(shapes, "input_blocks"), _count(shapes, "output_blocks")
    # Resampling by a convolution, or by none, takes a number on the way down without a residual block.
    borders = [i for i in range(1, down) if f"input_blocks.{i}.0.in_layers.0.weight" not in shapes]
    if borders:
        return tuple(end - start - 1 for start, end in pairwise([0, *borders, down]))
    # Residual blocks that downsample look like any other, but those that upsample come second in their block.
    # The way up has one block more on each level and begins with the lowest.
    if up:
        ends = [i for i in range(up) if _upsamples(shapes, i)]
        return tuple(end - start - 1 for start, end in pairwise([-1, *ends, up - 1]))[::-1]
    if isinstance(given, int) and given > 0:
        return (given,) * max(1, down // (given + 1))
    return tuple(given) if given and isinstance(given, (tuple, list)) else None


def _count(shapes: Shapes, part: str) -> int:
    """Raises IndexError for a number that leaves most numbers below it out."""
    numbers = (re.match(rf"{part}\.([0-9]+)\.", name) for name in shapes)
    found = [match[1] for match in numbers if match]
    if any(len(number) > len(str(len(shapes))) for number in found):
        raise IndexError
    count = 1 + max(map(int, found), default=-1)
    if count > len(shapes):
        raise IndexError
    return count


def _upsamples(shapes: Shapes, i: int) -> bool:
    """True if a second residual block, which resamples, ends output block i."""
    return any(f"output_blocks.{i}.{j}.in_layers.0.weight" in shapes for j in (1, 2))
