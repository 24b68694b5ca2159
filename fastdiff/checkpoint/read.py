"""Tensors out of a file, without ever running code from it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdiff.errors import FastdiffError

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights by name and the file's metadata.

    Raises:
        FastdiffError: another kind of file, a broken one, or one that holds more than named tensors.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in _PICKLED:
        return _state_dict(file, _unpickle(file)), {}
    raise FastdiffError(f"{file} is not a checkpoint: its name must end in .safetensors or {_PICKLED[0]}")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as archive:
            weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dict)
            return weights, archive.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise FastdiffError(f"{file} is broken or no safetensors file: {_reason(error)}") from None


def _unpickle(file: Path) -> Any:
    try:
        # weights_only: an unpickler that knows tensors and plain containers and calls nothing else.
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(file):
            raise FastdiffError(
                f"{file} is refused: it holds Python objects besides tensors, and loading them could run code; "
                f"save its state_dict alone ({_reason(error)})"
            ) from None
        raise FastdiffError(f"{file} is broken or no PyTorch checkpoint: {_reason(error)}") from None
    except (
        Exception
    ) as error:  # damaged bytes make the unpickler fail in any way: IndexError, struct.error, ...
        raise FastdiffError(f"{file} is broken or no PyTorch checkpoint: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """One line of what PyTorch says, without its advice on how to load anyway."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line] or lines
    return telling[0][:160] if telling else type(error).__name__


def _state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    """The named tensors, also one level down and with DistributedDataParallel's prefix."""
    if isinstance(content, dict) and "param_groups" in content:
        raise FastdiffError(
            f"{file} is the state of an optimizer; the model is in the file named model... or ema..."
        )
    if isinstance(content, dict):
        content = next(
            (content[k] for k in ("state_dict", "model") if isinstance(content.get(k), dict)), content
        )
    if not isinstance(content, dict):
        raise FastdiffError(f"{file} holds {type(content).__name__}, not named weights")
    if not content:
        raise FastdiffError(f"{file} holds no weights")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise FastdiffError(f"{file} holds {type(value).__name__} under {name!r}, not only named weights")
    return {name.removeprefix("module."): value for name, value in content.items()}
