"""Writing a model: safetensors, with its configuration as JSON in the metadata."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import torch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.files import write_tensors
from fastdiff.models import Classifier, ClassifierConfig, UNet

# In the metadata: of a model, and of a run's checkpoint.
METADATA_KEY, TRAINING_KEY = "fastdiff", "fastdiff.training"


def save(model: UNet | Classifier, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Write ``model`` to a .safetensors file that :func:`fastdiff.load` reads back as it is.

    The file holds the weights under guided-diffusion's names and, in its metadata, the network's
    configuration, the diffusion that it was trained with (``model.diffusion``) and ``model.class_names``.

    Args:
        model: a network built by fastdiff.
        path: a path that ends in .safetensors; the file is written atomically, even if the program is killed.
        dtype: dtype of the stored weights; None: their own.

    Raises:
        FastdiffError: another kind of model, file name or dtype, or a path that cannot be written.
    """
    if not isinstance(model, (UNet, Classifier)):
        raise FastdiffError(f"fastdiff.save writes fastdiff's own models, got {type(model).__name__}")
    if not str(path).endswith(".safetensors"):
        raise FastdiffError(f"fastdiff.save writes .safetensors files, got {str(path)!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise FastdiffError(f"dtype must be a floating-point torch.dtype, or None, got {dtype!r}")
    tensors = {
        name: value.to(dtype or value.dtype).contiguous() for name, value in model.state_dict().items()
    }
    write_tensors(path, tensors, {METADATA_KEY: json.dumps(description(model))})


def description(model: UNet | Classifier) -> dict[str, Any]:
    """What a file says of its network beside the weights."""
    diffusion = model.diffusion
    return {
        "kind": "classifier" if isinstance(model.config, ClassifierConfig) else "unet",
        "model": asdict(model.config),
        "diffusion": diffusion.stored() if isinstance(diffusion, DiffusionConfig) else None,
        "class_names": list(model.class_names),
    }
