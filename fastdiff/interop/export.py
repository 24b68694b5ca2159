"""Models for other programs: diffusers' folders, and the plain graph as ONNX or as a program of ``torch.export``."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.checkpoint.save import METADATA_KEY, description, save
from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path
from fastdiff.models import Classifier, ClassifierConfig, UNet

MOST_IN_ONE_FILE = 1_900_000_000  # bytes: protobuf, in which ONNX is written, ends at 2 GiB


def export(model: UNet | Classifier, path: str | os.PathLike[str]) -> str:
    """Write a model in a format that other programs read, which the end of the path says.

        fastdiff.export(model, "model.onnx")

    ============== ====================================================================================================
    path           what is written
    ============== ====================================================================================================
    .safetensors   weights under guided-diffusion's names with the configuration, as :func:`fastdiff.save`
    .onnx          the network f(x, t, y) as plain operators, by ``torch.onnx.export``; needs onnx and onnxscript
    .pt2           the same as a program of ``torch.export``, which runs without fastdiff
    a folder       diffusers' ``UNet2DModel`` and ``DDPMScheduler``; needs diffusers
    ============== ====================================================================================================

    Inputs of a graph are x [N,C,H,W] in the model's dtype, timesteps [N] float32 (whole or fractional) and, where the
    model takes them, low_res [N,C,h,w] and the labels y [N] int64, for any N; a .pt2 is called as
    ``program(x, timesteps, y=labels)``. The graph has PyTorch's own operators in the place of fastdiff's: the same
    result to rounding.

    Args:
        model: a network built by fastdiff, in eval mode.
        path: a file that is written atomically, or a folder that is empty or does not exist.

    Returns:
        What the format does not hold, as a sentence; "" where it holds everything.

    Raises:
        FastdiffError: a model or a configuration that the format cannot represent, by name; a missing library; a path
            that cannot be written.
    """
    target = Path(path)
    if not isinstance(model, (UNet, Classifier)):
        raise FastdiffError(f"export takes fastdiff's own models, got {type(model).__name__}")
    if target.suffix not in WRITERS:
        known = ", ".join(filter(None, WRITERS))
        raise FastdiffError(
            f"export does not know the format {target.suffix!r} of {target}; give a file that ends in {known},"
            " or a folder without a dot for diffusers"
        )
    return WRITERS[target.suffix](model.eval(), target)


def plain_program(model: UNet | Classifier) -> torch.export.ExportedProgram:
    """The model as a graph of PyTorch's own operators, for any number of images."""
    inputs = _inputs(model)
    rest = {name: value for name, value in inputs.items() if name not in ("x", "timesteps")}
    with use_backend("eager"), torch.no_grad():
        return torch.export.export(
            model, (inputs["x"], inputs["timesteps"]), rest, dynamic_shapes=_dynamic(inputs)
        )


def _dynamic(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """The sizes that may change: the number of images, and the size of small ones."""
    n = torch.export.Dim("batch")
    sizes: dict[str, dict[int, Any]] = {name: {0: n} for name in inputs}
    if "low_res" in inputs:
        sizes["low_res"] |= {2: torch.export.Dim("low_height"), 3: torch.export.Dim("low_width")}
    return sizes


def _inputs(model: UNet | Classifier) -> dict[str, Tensor]:
    """Two images, so that no size is 1, which would be taken for a constant."""
    config: Any = model.config
    like: dict[str, Any] = {"dtype": model.dtype, "device": next(model.parameters()).device}
    n, size = 2, config.image_size
    inputs = {
        "x": torch.zeros(n, config.in_channels, size, size, **like),
        "timesteps": torch.zeros(n, device=like["device"]),
    }
    if isinstance(config, ClassifierConfig):
        return inputs
    if config.low_res is not None:
        inputs["low_res"] = torch.zeros(n, config.in_channels, size // 4, size // 4, **like)
    if config.num_classes is not None:
        inputs["y"] = torch.zeros(n, dtype=torch.int64, device=like["device"])
    return inputs


_GRAPH_ALONE = (
    "It is the network alone: no sampler and no noise schedule, which are described in its metadata under"
    f" {METADATA_KEY!r}."
)


def _safetensors(model: UNet | Classifier, target: Path) -> str:
    save(model, target)
    return ""


def _program(model: UNet | Classifier, target: Path) -> str:
    program = plain_program(model)
    with atomic_path(target) as temporary:
        torch.export.save(program, temporary, extra_files={METADATA_KEY: json.dumps(description(model))})
    return _GRAPH_ALONE


def _onnx(model: UNet | Classifier, target: Path) -> str:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FastdiffError(
            f"ONNX needs the libraries onnx and onnxscript ({error}); pip install 'fastdiff[export]'"
        ) from None
    inputs = _inputs(model)
    options = {"input_names": list(inputs), "output_names": ["output"], "dynamic_shapes": _dynamic(inputs)}
    program, log = plain_program(model), logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of libraries that are not needed here
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # between PyTorch's own parts
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **options)
    finally:
        log.setLevel(level)
    made.model.metadata_props[METADATA_KEY] = json.dumps(description(model))
    large = sum(p.nbytes for p in model.parameters()) > MOST_IN_ONE_FILE
    with atomic_path(target) as temporary:
        made.save(temporary, external_data=large)
        for beside in temporary.parent.glob(f"{target.name}.*"):  # the weights, if they are large
            os.replace(beside, target.with_name(beside.name))
    return _GRAPH_ALONE


def _diffusers(model: UNet | Classifier, target: Path) -> str:
    from fastdiff.interop.diffusers.folder import write_folder

    if isinstance(model, Classifier):
        raise FastdiffError("diffusers has no counterpart of a classifier; give a denoiser")
    return write_folder(model, target)


WRITERS: dict[str, Callable[[Any, Path], str]] = {
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".pt2": _program,
    "": _diffusers,
}
