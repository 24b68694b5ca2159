"""A model as a folder that diffusers loads: ``unet/``, ``scheduler/`` and the list of both."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.files import HALF, writing
from fastdiff.models import UNet

_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def write_folder(model: UNet, folder: Path) -> str:
    """Write diffusers' ``DDPMPipeline`` of this model: ``DDPMPipeline.from_pretrained(folder)`` samples from it.

    Returns:
        What diffusers does not represent, as a sentence; "" where it represents everything.

    Raises:
        FastdiffError: no diffusers; an option without a counterpart, by name; a folder that holds other files.
    """
    try:
        from diffusers import DDPMPipeline, DDPMScheduler
    except ImportError as error:
        raise FastdiffError(
            f"a diffusers folder needs diffusers ({error}); pip install 'fastdiff[export]'"
        ) from None
    from fastdiff.interop.diffusers.convert import to_unet2d

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FastdiffError(f"{folder} is there already; give the name of a new folder")
    scheduler = DDPMScheduler(**_scheduler_config(model.diffusion))
    pipeline: Any = DDPMPipeline(unet=to_unet2d(model), scheduler=scheduler)
    half = folder.with_name(f".{folder.name}{HALF}")
    with writing(folder):
        shutil.rmtree(half, ignore_errors=True)
        try:
            pipeline.save_pretrained(half)
            os.replace(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    if model.config.num_classes is None:
        return ""
    null = "" if model.null_class is None else f" (label {model.null_class} means no class)"
    names = " and class names" if model.class_names else ""
    return (
        f"diffusers' DDPMPipeline passes on no labels{names}: call the UNet2DModel with class_labels=,"
        f" from 0 to {model.config.num_classes - 1}{null}."
    )


def _scheduler_config(diffusion: DiffusionConfig | None) -> dict[str, Any]:
    if not isinstance(diffusion, DiffusionConfig):
        raise FastdiffError(
            "this model does not say which diffusion it was trained with, which diffusers needs; "
            "load it with its preset"
        )
    if diffusion.rescale_timesteps and diffusion.steps != 1000:
        raise FastdiffError(
            f"diffusers gives a network whole timesteps, and this one takes {diffusion.steps} steps scaled to 1000"
            " (rescale_timesteps); nothing was written"
        )
    return {
        "num_train_timesteps": diffusion.steps,
        "trained_betas": GaussianDiffusion(diffusion).betas.tolist(),
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "variance_type": diffusion.variance,
    }
