"""Tensors out of a file, without ever running code from it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.checkpoint.choose import choose, pick, training_configuration, training_sets
from fastdiff.checkpoint.save import TRAINING_KEY
from fastdiff.errors import FastdiffError, reason
from fastdiff.files import open_tensors
from fastdiff.models.lora import merge

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_DEEPEST = 4  # dict in dict that is looked into


def read(
    file: Path, weights: str | None = None, *, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights by name and the file's metadata.

    Args:
        weights: which of several sets, see :func:`fastdiff.checkpoint.choose.choose`.
        mapped: leave the numbers of a .pt file on the disk, for a look at names and shapes.

    Raises:
        FastdiffError: another kind of file, a broken one, one that is not what was written, or one that holds more than
            named tensors.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(file, weights)
    if file.suffix in _PICKLED:
        return _state_dict(file, _unpickle(file, mapped), weights), {}
    raise FastdiffError(f"{file} is not a checkpoint: its name must end in .safetensors or {_PICKLED[0]}")


def _read_safetensors(file: Path, weights: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_tensors(file) as stored:
        metadata = stored.metadata
        if TRAINING_KEY in metadata:
            names = pick(file, training_sets(file, metadata, stored.names), weights).names
            metadata = training_configuration(file, metadata)
        else:
            names = choose(file, stored.names, weights)
        # A run of --lora has its adapters apart.
        return merge({name: _checked(file, own, stored.read(own)) for name, own in names.items()}), metadata


def _unpickle(file: Path, mapped: bool) -> Any:
    _check_zip(file)
    try:
        # weights_only: an unpickler that knows tensors and plain containers and calls nothing else.
        return torch.load(
            file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(file):
            raise FastdiffError(
                f"{file} is refused: it holds Python objects besides tensors, and loading them could run code; "
                f"save its state_dict alone ({_reason(error)})"
            ) from None
        raise FastdiffError(f"{file} is broken or no PyTorch checkpoint: {_reason(error)}") from None
    # Damaged bytes make the unpickler fail with any exception: IndexError, struct.error, ...
    except Exception as error:
        raise FastdiffError(f"{file} is broken or no PyTorch checkpoint: {_reason(error)}") from None


def _check_zip(file: Path) -> None:
    """Check the checksums of a new-style file, which PyTorch ignores."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.CRC:  # written without: torch.serialization.set_crc32_options(False)
                    continue
                with archive.open(member) as content:
                    while content.read(1 << 20):
                        pass
    except Exception as error:  # a damaged directory makes zipfile fail in any way
        raise FastdiffError(f"{file} is broken or no PyTorch checkpoint: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """PyTorch's error message as one line, without its advice on how to load the file anyway."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), None)
    return telling[:160] if telling else reason(error)


def _state_dict(file: Path, content: Any, weights: str | None) -> dict[str, Tensor]:
    """The named tensors of one network, also in nested dicts and with prefixes."""
    if isinstance(content, dict) and "param_groups" in content:
        raise FastdiffError(
            f"{file} is the state of an optimizer; the model is in the file named model... or ema..."
        )
    if not isinstance(content, dict):
        raise FastdiffError(f"{file} holds {type(content).__name__}, not named weights")
    flat: dict[Any, Any] = dict(_flat(content))
    if not flat:
        raise FastdiffError(f"{file} holds no weights")
    names = choose(file, [name for name in flat if isinstance(name, str)], weights)
    if len(names) < len(flat) and not any(isinstance(flat[own], Tensor) for own in names.values()):
        names = {name: name for name in flat}  # no network: all names stay, for the error message
    return {name: _checked(file, own, flat[own]) for name, own in names.items()}


def _flat(content: dict[Any, Any], depth: int = 1) -> Iterator[tuple[Any, Any]]:
    """The items of nested dicts, with the names of the levels joined by dots."""
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(name, str) and depth < _DEEPEST:
            yield from ((f"{name}.{k}" if isinstance(k, str) else k, v) for k, v in _flat(value, depth + 1))
        else:
            yield name, value


def _checked(file: Path, name: Any, value: Any) -> Tensor:
    """A plain floating-point tensor whose numbers are all in the file."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise FastdiffError(f"{file} holds {type(value).__name__} under {name!r}, not only named weights")
    if value.layout != torch.strided or value.device.type != "cpu" or not value.is_floating_point():
        raise FastdiffError(
            f"{file} holds a tensor of {value.dtype}, {value.layout}, {value.device} under {name}; "
            "weights must be plain floating-point tensors"
        )
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise FastdiffError(f"{file}: {name} is {list(value.shape)}, more than the file holds")
    return value
