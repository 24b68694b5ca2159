"""Reading a model: from fastdiff's own files, from guided-diffusion's, or a bundled one by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from fastdiff.checkpoint.detect import Found, detect, of_tokens, with_options
from fastdiff.checkpoint.lora import base_of, with_base
from fastdiff.checkpoint.options import ClassifierName, LoadOptions, UNetName
from fastdiff.checkpoint.read import read
from fastdiff.checkpoint.released import find
from fastdiff.checkpoint.save import METADATA_KEY
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError, reason
from fastdiff.files import parse_json
from fastdiff.models import Classifier, ClassifierConfig, UNet, UNetConfig, build_model
from fastdiff.scalars import plain
from fastdiff.zoo import PRESETS

if TYPE_CHECKING:
    from typing_extensions import Unpack

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_MOST_LEVELS = 64
_KINDS = {"unet": UNetConfig, "classifier": ClassifierConfig}


@overload
def load(path: UNetName, **options: Unpack[LoadOptions]) -> UNet: ...


@overload
def load(path: ClassifierName, **options: Unpack[LoadOptions]) -> Classifier: ...


@overload
def load(path: str | os.PathLike[str], **options: Unpack[LoadOptions]) -> UNet | Classifier: ...


def load(
    path: str | os.PathLike[str],
    *,
    preset: str | None = None,
    weights: str | None = None,
    diffusion: DiffusionConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    base: str | os.PathLike[str] | None = None,
    **options: Any,
) -> UNet | Classifier:
    """A model ready to sample, with ``.config``, ``.diffusion`` and ``.class_names``.

    It is in eval mode and its weights are frozen: they require no gradients. To train it in a loop of your own, give
    ``trainable=True``; ``fastdiff train --init`` does so by itself.

        model = fastdiff.load("fashion-mnist")                     # bundled
        model = fastdiff.load("256x256_diffusion.pt")              # released by ADM: recognised
        model = fastdiff.load("adm-256")                           # the same, once fastdiff fetch has downloaded it
        model = fastdiff.load("ema_0.9999_100000.pt", image_size=64, num_heads=4,
                              diffusion=DiffusionConfig(schedule="cosine"))   # from guided-diffusion's scripts

        model = fastdiff.load("runs/a/checkpoints/step-00001000.safetensors")   # of fastdiff train: its average

    The configuration is that of ``preset``; else the one stored in the file; else it is detected from the
    weights. Weights do not determine everything; an error message asks for what is missing. EDM and consistency models
    of one network are told apart by the names of the published files, or by ``preset`` or ``diffusion``.

    Args:
        path: a .safetensors or .pt file, or the name of a bundled model (:func:`bundled`) or of a published one that
            ``fastdiff fetch`` has downloaded. No pickle is ever executed: a .pt file may hold tensors and nothing else.
        preset: name of the configuration in ``fastdiff.PRESETS`` that the weights belong to.
        weights: the set to load from a file with several, such as a training checkpoint: "ema", "raw", or a set's name
            (the key under which it is stored, or a decay such as "0.9999"). None: the average if there is one, which is
            logged. Prefixes such as "module.", "model." and "_orig_mod." are removed.
        diffusion: the diffusion that the model was trained with; replaces that of preset or file.
        device, dtype: device and dtype of the model.
        trainable: return it in train mode, which has dropout, and with weights that require gradients.
        base: for a file of low-rank adapters (``lora.safetensors`` of ``fastdiff train --lora``), the checkpoint that
            they were trained on. None: where it was then.
        options: fields of :class:`UNetConfig` or :class:`ClassifierConfig` that replace what was found.

    Raises:
        FastdiffError: a file that is missing, broken (checksums are checked where the file has them), not a model, or
            unsafe; weights that do not fit the configuration (the first mismatch is named); several sets of weights and
            none chosen; an unknown preset, option, dtype or device.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise FastdiffError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    if diffusion is not None and not isinstance(diffusion, DiffusionConfig):
        raise FastdiffError(f"diffusion must be a DiffusionConfig, got {diffusion!r}")
    file, name = _file(path)
    preset = preset or name
    options = {name: plain(value) for name, value in options.items()}
    tensors, metadata = read(file, weights)
    known = base_of(metadata)
    if known is not None:
        tensors = with_base(file, tensors, _file(base or known)[0])
    elif base is not None:
        raise FastdiffError(f"{file} is no file of low-rank adapters; leave out base")
    found = _configuration(file, tensors, metadata.get(METADATA_KEY), preset, options)
    tensors = of_tokens(tensors)
    model = _build(file, found.model, tensors)
    _fit(file, model, tensors)
    model.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, assign=True)
    model.diffusion = diffusion or found.diffusion
    model.class_names = found.class_names
    try:
        return model.requires_grad_(trainable).train(trainable).to(device)
    except (RuntimeError, AssertionError) as error:
        raise FastdiffError(f"device {device!s} cannot be used: {str(error).splitlines()[0]}") from None


def bundled() -> list[str]:
    """Names of the models that come with fastdiff."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def check_weights(file: Path, preset: str) -> int:
    """The number of tensors in a .pt file, after a comparison of their names and shapes with a preset's.

    The file's own checksums are compared too; its numbers are not kept in memory.

    Raises:
        FastdiffError: a broken file, or other tensors.
    """
    tensors, _ = read(file, mapped=True)
    _fit(file, _build(file, PRESETS[preset].model, tensors), of_tokens(tensors))
    return len(tensors)


def _file(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """The file, and its preset if the name of a published checkpoint was given."""
    name = str(path)
    if Path(path).is_file():
        return Path(path), None
    if name in bundled():
        return ASSETS / f"{name}.safetensors", None
    row = find(name)
    if row is not None and row.path.is_file():
        return row.path, row.name
    if row is not None:
        raise FastdiffError(
            f"{row.file} has not been downloaded; do so with: fastdiff fetch {row.name}, or give the path of the file"
        )
    if name in PRESETS:
        raise FastdiffError(f"no weights of {name} are published; give the path of a checkpoint")
    raise FastdiffError(
        f"no checkpoint at {name}; give a .safetensors or .pt file, a bundled model: "
        f"{', '.join(bundled()) or 'none'}, or a published one of fastdiff fetch --list"
    )


def _configuration(
    file: Path, weights: dict[str, Tensor], stored: str | None, preset: str | None, options: dict[str, Any]
) -> Found:
    if preset is not None and preset not in PRESETS:
        raise FastdiffError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    found = None if stored is None else _from_metadata(file, stored)
    if preset is not None:
        names = found.class_names if found else ()
        found = Found(PRESETS[preset].model, PRESETS[preset].diffusion, names)
    if found is None:
        return detect(file, {name: tuple(value.shape) for name, value in weights.items()}, options)
    return replace(found, model=with_options(found.model, options))


def _from_metadata(file: Path, stored: str) -> Found:
    try:
        about = parse_json(stored)
        kind = _KINDS[about["kind"]]
        options: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in about["model"].items()
        }
        if any(len(v) > _MOST_LEVELS for v in options.values() if isinstance(v, tuple)):
            raise ValueError(f"a network has at most {_MOST_LEVELS} levels")
        model = kind(**options)
        diffusion = DiffusionConfig(**about["diffusion"]) if about["diffusion"] else None
        names = tuple(str(name) for name in about.get("class_names", ()))
    except KeyError as error:
        raise FastdiffError(f"{file}: its stored configuration lacks or does not know {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FastdiffError(f"{file}: its stored configuration cannot be read: {reason(error)}") from None
    return Found(model, diffusion, names)


def _build(
    file: Path, config: UNetConfig | ClassifierConfig, weights: dict[str, Tensor]
) -> UNet | Classifier:
    """The network, without its weights. A network much deeper than the weights is refused before it takes memory."""
    blocks = sum(config.blocks_per_level)
    if blocks > len(weights):
        raise FastdiffError(
            f"{file} does not fit its configuration: {blocks} residual blocks, and only {len(weights)} tensors"
        )
    try:
        with torch.device("meta"):
            return build_model(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise FastdiffError(f"{file}: its configuration cannot be built: {reason(error)}") from None


def _fit(file: Path, model: UNet | Classifier, weights: dict[str, Tensor]) -> None:
    """Raise with the first parameter that is missing, has another shape, or is not expected."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise FastdiffError(f"{file} does not fit its configuration: it lacks {name} {list(shape)}")
        if tuple(weights[name].shape) != shape:
            raise FastdiffError(
                f"{file} does not fit its configuration: {name} is {list(weights[name].shape)}, "
                f"expected {list(shape)}"
            )
    extra = next((name for name in weights if name not in expected), None)
    if extra is not None:
        raise FastdiffError(f"{file} does not fit its configuration: {extra} is not part of such a model")
