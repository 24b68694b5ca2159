"""consistency_models' ``script_util``: defaults and builders, on guided-diffusion's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastdiff.interop.consistency_models.karras_diffusion import KarrasDenoiser
from fastdiff.interop.consistency_models.unet import UNetModel
from fastdiff.interop.guided_diffusion import script_util
from fastdiff.interop.guided_diffusion.script_util import NUM_CLASSES as NUM_CLASSES
from fastdiff.interop.guided_diffusion.script_util import add_dict_to_argparser as add_dict_to_argparser
from fastdiff.interop.guided_diffusion.script_util import args_to_dict as args_to_dict
from fastdiff.interop.guided_diffusion.script_util import str2bool as str2bool


def cm_train_defaults() -> dict[str, Any]:
    """Default options of consistency training."""
    return {
        "teacher_model_path": "",
        "teacher_dropout": 0.1,
        "training_mode": "consistency_distillation",
        "target_ema_mode": "fixed",
        "scale_mode": "fixed",
        "total_training_steps": 600000,
        "start_ema": 0.0,
        "start_scales": 40,
        "end_scales": 40,
        "distill_steps_per_iter": 50000,
        "loss_norm": "lpips",
    }


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Default options of U-Nets and their denoiser.

    ``loss_norm`` is among them, so that what a script is given reaches the loss (the original always takes LPIPS).
    """
    of_diffusion = script_util.diffusion_defaults().keys() - {"learn_sigma"}
    shared = {k: v for k, v in script_util.model_and_diffusion_defaults().items() if k not in of_diffusion}
    return {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        **shared,
        "attention_resolutions": "32,16,8",
        "weight_schedule": "karras",
        "loss_norm": "lpips",
    }


def create_model_and_diffusion(
    *, weight_schedule: str, sigma_min: float = 0.002, sigma_max: float = 80.0, distillation: bool = False,
    loss_norm: str = "lpips", **model: Any,
) -> tuple[UNetModel, KarrasDenoiser]:  # fmt: skip
    """A U-Net and its denoiser, from the values of ``model_and_diffusion_defaults``."""
    diffusion = KarrasDenoiser(
        sigma_data=0.5,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        distillation=distillation,
        weight_schedule=weight_schedule,
        loss_norm=loss_norm,
    )
    return create_model(**model), diffusion


def create_model(*args: Any, **options: Any) -> UNetModel:
    """A U-Net, by the arguments of guided-diffusion's ``create_model``."""
    return script_util.create_model(*args, **options, network=UNetModel)


def create_ema_and_scales_fn(
    target_ema_mode: str,
    start_ema: float,
    scale_mode: str,
    start_scales: int,
    end_scales: int,
    total_steps: int,
    distill_steps_per_iter: int,
) -> Callable[[int], tuple[float, int]]:
    """step -> (decay of the target's average, number of levels). Song et al. 2023, appendix C.

    "progressive": N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1 levels; "adaptive": the decay is
    exp(s_0 ln(start_ema) / (N - 1)).
    """

    def intervals(step: int) -> int:
        inside = (step / total_steps) * ((end_scales + 1) ** 2 - start_scales**2) + start_scales**2
        return max(math.ceil(math.sqrt(inside) - 1), 1)

    if (target_ema_mode, scale_mode) == ("fixed", "fixed"):
        return lambda step: (float(start_ema), int(start_scales))
    if (target_ema_mode, scale_mode) == ("fixed", "progressive"):
        return lambda step: (float(start_ema), intervals(step) + 1)
    if (target_ema_mode, scale_mode) == ("adaptive", "progressive"):
        return lambda step: (
            math.exp(math.log(start_ema) * start_scales / intervals(step)),
            intervals(step) + 1,
        )
    raise NotImplementedError(f"unknown combination {target_ema_mode!r}, {scale_mode!r}")
