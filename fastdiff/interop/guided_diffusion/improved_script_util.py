"""improved-diffusion's ``script_util``: defaults and builders of its own, on guided-diffusion's."""

from __future__ import annotations

import inspect
from typing import Any

from fastdiff.interop.guided_diffusion import script_util
from fastdiff.interop.guided_diffusion.respace import SpacedDiffusion
from fastdiff.interop.guided_diffusion.script_util import NUM_CLASSES as NUM_CLASSES
from fastdiff.interop.guided_diffusion.script_util import add_dict_to_argparser as add_dict_to_argparser
from fastdiff.interop.guided_diffusion.script_util import args_to_dict as args_to_dict
from fastdiff.interop.guided_diffusion.script_util import str2bool as str2bool
from fastdiff.interop.guided_diffusion.unet import UNetModel

_LEVELS = {256: "1,1,2,2,4,4", 64: "1,2,3,4", 32: "1,2,2,2"}
_SR_LEVELS = {256: "1,1,2,2,4,4", 64: "1,2,3,4"}


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Default options for training and sampling."""
    return {
        "image_size": 64,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "attention_resolutions": "16,8",
        "dropout": 0.0,
        "learn_sigma": False,
        "sigma_small": False,
        "class_cond": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
    }


def create_model_and_diffusion(**options: Any) -> tuple[UNetModel, SpacedDiffusion]:
    """A U-Net and its process, from the values of ``model_and_diffusion_defaults``."""
    return create_model(**_accepted(create_model, options)), create_gaussian_diffusion(**_process(options))


def create_model(
    image_size, num_channels, num_res_blocks, learn_sigma, class_cond, use_checkpoint, attention_resolutions,
    num_heads, num_heads_upsample, use_scale_shift_norm, dropout,
) -> UNetModel:  # fmt: skip
    """A U-Net for images of 256, 64 or 32 pixels; ``attention_resolutions`` in pixels, "16,8"."""
    return script_util.create_model(
        image_size, num_channels, num_res_blocks, channel_mult=_levels(image_size, _LEVELS), learn_sigma=learn_sigma,
        class_cond=class_cond, use_checkpoint=use_checkpoint, attention_resolutions=attention_resolutions,
        num_heads=num_heads, num_heads_upsample=num_heads_upsample, use_scale_shift_norm=use_scale_shift_norm,
        dropout=dropout,
    )  # fmt: skip


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Default options of the upsampler: large_size and small_size in place of image_size."""
    defaults = model_and_diffusion_defaults()
    del defaults["image_size"]
    return {"large_size": 256, "small_size": 64} | defaults


def sr_create_model_and_diffusion(**options: Any) -> tuple[Any, SpacedDiffusion]:
    """An upsampler and its process, from the values of ``sr_model_and_diffusion_defaults``."""
    return sr_create_model(**_accepted(sr_create_model, options)), create_gaussian_diffusion(
        **_process(options)
    )


def sr_create_model(
    large_size, small_size, num_channels, num_res_blocks, learn_sigma, class_cond, use_checkpoint,
    attention_resolutions, num_heads, num_heads_upsample, use_scale_shift_norm, dropout,
) -> Any:  # fmt: skip
    """An upsampler to 256 or 64 pixels."""
    _levels(large_size, _SR_LEVELS)
    return script_util.sr_create_model(
        large_size, small_size, num_channels, num_res_blocks, learn_sigma, class_cond, use_checkpoint,
        attention_resolutions, num_heads, -1, num_heads_upsample, use_scale_shift_norm, dropout,
        resblock_updown=False, use_fp16=False,
    )  # fmt: skip


def create_gaussian_diffusion(**options: Any) -> SpacedDiffusion:
    """The process that the options describe: guided-diffusion's, with its arguments."""
    return script_util.create_gaussian_diffusion(**options)


def _process(options: dict[str, Any]) -> dict[str, Any]:
    named = {"steps" if name == "diffusion_steps" else name: value for name, value in options.items()}
    return _accepted(script_util.create_gaussian_diffusion, named)


def _accepted(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}


def _levels(image_size: int, known: dict[int, str]) -> str:
    if image_size not in known:
        raise ValueError(f"unsupported image size: {image_size}; known: {', '.join(map(str, sorted(known)))}")
    return known[image_size]
