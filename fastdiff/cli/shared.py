"""Functions that the sampling commands share: loading the model, naming classes, checking the output folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fastdiff
from fastdiff.errors import FastdiffError


def load_denoiser(
    checkpoint: str, preset: str | None, device: str, dtype: str = "float32", weights: str | None = None
) -> Any:
    """Load a model that makes images from noise, in the layout that is fastest; arguments as for :func:`fastdiff.load`.

    Raises:
        FastdiffError: no such checkpoint or device, another kind of model, or one without its diffusion's settings.
    """
    import torch

    from fastdiff.backend import usable_device
    from fastdiff.inference import is_for
    from fastdiff.models import ClassifierConfig

    usable = usable_device(device)
    model: Any = fastdiff.load(
        checkpoint, preset=preset, weights=weights, device=usable, dtype=getattr(torch, dtype)
    )
    if isinstance(model.config, ClassifierConfig):
        raise FastdiffError(
            f"{checkpoint} is a classifier, which cannot make images; give a denoiser's checkpoint"
        )
    if model.config.low_res is not None:
        raise FastdiffError(
            f"{checkpoint} enlarges small images, which this command does not read; "
            "in Python: fastdiff.sample(model, n, cond={'low_res': images}, classes=...)"
        )
    if model.diffusion is None:
        raise FastdiffError(
            f"{checkpoint} does not say which diffusion it was trained with; give --preset, "
            f"one of {', '.join(fastdiff.PRESETS)}"
        )
    # Packed weights have a layout of their own.
    return model if is_for(model) else model.to(memory_format=torch.channels_last)


def free_weights(*models: Any) -> None:
    """On a CPU, pack the weights of models (or None) for the rest of the process and free the originals.

    The models then run under ``torch.inference_mode()`` alone, and on fastdiff's kernels alone.
    """
    from fastdiff.inference import is_for, optimize

    for model in models:
        if model is not None and is_for(model):
            optimize(model, free_weights=True)


@contextlib.contextmanager
def enough_memory(device: str, batch_size: int) -> Iterator[None]:
    """Report a GPU that is out of memory as a mistake in the batch size."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise FastdiffError(
            f"{device} has no memory for {batch_size} images at a time; give a smaller --batch-size"
        ) from None


def check_folder(out: Path, files: Sequence[str] = ()) -> None:
    """Create the output folder, and raise an error now, before the work, if the results cannot be written to it.

    Raises:
        FastdiffError: it cannot be made or written to, or a folder has the name of one of the files.
    """
    taken = next((out / name for name in files if (out / name).is_dir()), None)
    if taken:
        raise FastdiffError(f"cannot write {taken}: it is a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        reason = "it is a file" if out.is_file() else error.strerror
        raise FastdiffError(f"cannot write to {out}: {reason}; give --out a place to write to") from None


def written_by_sample(path: Path) -> Path:
    """The file of images in a folder that fastdiff sample has written; any other path as it is.

    Raises:
        FastdiffError: a folder in which that command has not finished any images.
    """
    if (path / "samples.npz").is_file():
        return path / "samples.npz"
    if (path / "samples.parts").is_dir():
        raise FastdiffError(
            f"{path} is the beginning of a run; give its fastdiff sample command again to end it"
        )
    return path


def class_number(given: str, num_classes: int, names: Sequence[str]) -> int:
    """The number of a class that is given by name, in upper or lower case, or by number.

    Raises:
        FastdiffError: no such class.
    """
    folded = [name.casefold() for name in names]
    if given.casefold() in folded:
        return folded.index(given.casefold())
    if given.isdecimal() and int(given) < num_classes:
        return int(given)
    numbers = f"0 to {num_classes - 1}"
    known = f"{', '.join(names)}, or {numbers}" if names else numbers
    raise FastdiffError(f"unknown class {given!r}; known: {known}")


def one_class(model: Any, checkpoint: str, name: str | None) -> int | None:
    """The number of the class of all images, or None for a model that does without.

    Raises:
        FastdiffError: an unknown class, or one for a model without; none for a model that needs one.
    """
    num_classes = model.config.num_classes
    if name is None:
        if num_classes is not None and model.null_class is None:
            raise FastdiffError(f"{checkpoint} is class-conditional; give --class, 0 to {num_classes - 1}")
        return None
    if num_classes is None:
        raise FastdiffError(f"{checkpoint} is not class-conditional; leave out --class")
    return class_number(name, num_classes, list(model.class_names))


def process() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun sets them; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
