"""guided-diffusion's ``script_util``: defaults, builders and command-line arguments."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from typing import Any

from fastdiff.interop.guided_diffusion import gaussian_diffusion as gd
from fastdiff.interop.guided_diffusion.respace import SpacedDiffusion, space_timesteps
from fastdiff.interop.guided_diffusion.unet import EncoderUNetModel, SuperResModel, UNetModel

NUM_CLASSES = 1000

_LEVELS: dict[int, tuple[float, ...]] = {  # channel_mult by image size
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
_SR_LEVELS = {512: (1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4)}


def diffusion_defaults() -> dict[str, Any]:
    """Default options of the diffusion process, for training and sampling alike."""
    return {
        "learn_sigma": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": False,
        "rescale_learned_sigmas": False,
    }


def classifier_defaults() -> dict[str, Any]:
    """Default options of classifiers."""
    return {
        "image_size": 64,
        "classifier_use_fp16": False,
        "classifier_width": 128,
        "classifier_depth": 2,
        "classifier_attention_resolutions": "32,16,8",
        "classifier_use_scale_shift_norm": True,
        "classifier_resblock_updown": True,
        "classifier_pool": "attention",
    }


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Default options of U-Nets and their diffusion process."""
    model = {
        "image_size": 64,
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "num_head_channels": -1,
        "attention_resolutions": "16,8",
        "channel_mult": "",
        "dropout": 0.0,
        "class_cond": False,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
        "resblock_updown": False,
        "use_fp16": False,
        "use_new_attention_order": False,
    }
    return model | diffusion_defaults()


def classifier_and_diffusion_defaults() -> dict[str, Any]:
    return classifier_defaults() | diffusion_defaults()


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Default options of the upsampler, with large_size and small_size, without channel_mult and attention order."""
    defaults = model_and_diffusion_defaults()
    accepted = inspect.signature(sr_create_model_and_diffusion).parameters
    return {"large_size": 256, "small_size": 64} | {k: v for k, v in defaults.items() if k in accepted}


def create_model_and_diffusion(
    image_size: Any, class_cond: Any, learn_sigma: Any, num_channels: Any, num_res_blocks: Any,
    channel_mult: Any, num_heads: Any, num_head_channels: Any, num_heads_upsample: Any,
    attention_resolutions: Any, dropout: Any, diffusion_steps: Any, noise_schedule: Any,
    timestep_respacing: Any, use_kl: Any, predict_xstart: Any, rescale_timesteps: Any,
    rescale_learned_sigmas: Any, use_checkpoint: Any, use_scale_shift_norm: Any, resblock_updown: Any,
    use_fp16: Any, use_new_attention_order: Any,
) -> tuple[UNetModel, SpacedDiffusion]:  # fmt: skip
    """A U-Net and its process, from the values of ``model_and_diffusion_defaults``."""
    model = create_model(
        image_size, num_channels, num_res_blocks,
        channel_mult=channel_mult, learn_sigma=learn_sigma, class_cond=class_cond, use_checkpoint=use_checkpoint,
        attention_resolutions=attention_resolutions, num_heads=num_heads, num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample, use_scale_shift_norm=use_scale_shift_norm, dropout=dropout,
        resblock_updown=resblock_updown, use_fp16=use_fp16, use_new_attention_order=use_new_attention_order,
    )  # fmt: skip
    diffusion = create_gaussian_diffusion(
        steps=diffusion_steps, learn_sigma=learn_sigma, noise_schedule=noise_schedule, use_kl=use_kl,
        predict_xstart=predict_xstart, rescale_timesteps=rescale_timesteps,
        rescale_learned_sigmas=rescale_learned_sigmas, timestep_respacing=timestep_respacing,
    )  # fmt: skip
    return model, diffusion


def create_model(
    image_size, num_channels, num_res_blocks, channel_mult="", learn_sigma=False, class_cond=False,
    use_checkpoint=False, attention_resolutions="16", num_heads=1, num_head_channels=-1, num_heads_upsample=-1,
    use_scale_shift_norm=False, dropout=0, resblock_updown=False, use_fp16=False, use_new_attention_order=False,
    network=UNetModel,
) -> Any:  # fmt: skip
    """A U-Net, of the class ``network``; ``attention_resolutions`` in pixels, "16,8".

    channel_mult "" is that of the published sizes.

    Numbers in channel_mult may be fractions (the original takes whole ones only).
    """
    return network(
        image_size=image_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks,
        attention_resolutions=_rates(image_size, attention_resolutions),
        dropout=dropout,
        channel_mult=_levels(image_size, channel_mult, _LEVELS),
        num_classes=NUM_CLASSES if class_cond else None,
        use_checkpoint=use_checkpoint,
        use_fp16=use_fp16,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
    )


def create_classifier_and_diffusion(
    image_size, classifier_use_fp16, classifier_width, classifier_depth, classifier_attention_resolutions,
    classifier_use_scale_shift_norm, classifier_resblock_updown, classifier_pool, learn_sigma, diffusion_steps,
    noise_schedule, timestep_respacing, use_kl, predict_xstart, rescale_timesteps, rescale_learned_sigmas,
) -> tuple[EncoderUNetModel, SpacedDiffusion]:  # fmt: skip
    """A classifier and its process, from the values of ``classifier_and_diffusion_defaults``."""
    classifier = create_classifier(
        image_size, classifier_use_fp16, classifier_width, classifier_depth, classifier_attention_resolutions,
        classifier_use_scale_shift_norm, classifier_resblock_updown, classifier_pool,
    )  # fmt: skip
    diffusion = create_gaussian_diffusion(
        steps=diffusion_steps, learn_sigma=learn_sigma, noise_schedule=noise_schedule, use_kl=use_kl,
        predict_xstart=predict_xstart, rescale_timesteps=rescale_timesteps,
        rescale_learned_sigmas=rescale_learned_sigmas, timestep_respacing=timestep_respacing,
    )  # fmt: skip
    return classifier, diffusion


def create_classifier(
    image_size, classifier_use_fp16, classifier_width, classifier_depth, classifier_attention_resolutions,
    classifier_use_scale_shift_norm, classifier_resblock_updown, classifier_pool,
) -> EncoderUNetModel:  # fmt: skip
    """A classifier of 1000 classes."""
    return EncoderUNetModel(
        image_size=image_size,
        in_channels=3,
        model_channels=classifier_width,
        out_channels=NUM_CLASSES,
        num_res_blocks=classifier_depth,
        attention_resolutions=_rates(image_size, classifier_attention_resolutions),
        channel_mult=_levels(image_size, "", _LEVELS),
        use_fp16=classifier_use_fp16,
        num_head_channels=64,
        use_scale_shift_norm=classifier_use_scale_shift_norm,
        resblock_updown=classifier_resblock_updown,
        pool=classifier_pool,
    )


def sr_create_model_and_diffusion(
    large_size, small_size, class_cond, learn_sigma, num_channels, num_res_blocks, num_heads, num_head_channels,
    num_heads_upsample, attention_resolutions, dropout, diffusion_steps, noise_schedule, timestep_respacing, use_kl,
    predict_xstart, rescale_timesteps, rescale_learned_sigmas, use_checkpoint, use_scale_shift_norm, resblock_updown,
    use_fp16,
) -> tuple[SuperResModel, SpacedDiffusion]:  # fmt: skip
    """An upsampler and its process, from the values of ``sr_model_and_diffusion_defaults``."""
    model = sr_create_model(
        large_size, small_size, num_channels, num_res_blocks,
        learn_sigma=learn_sigma, class_cond=class_cond, use_checkpoint=use_checkpoint,
        attention_resolutions=attention_resolutions, num_heads=num_heads, num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample, use_scale_shift_norm=use_scale_shift_norm, dropout=dropout,
        resblock_updown=resblock_updown, use_fp16=use_fp16,
    )  # fmt: skip
    diffusion = create_gaussian_diffusion(
        steps=diffusion_steps, learn_sigma=learn_sigma, noise_schedule=noise_schedule, use_kl=use_kl,
        predict_xstart=predict_xstart, rescale_timesteps=rescale_timesteps,
        rescale_learned_sigmas=rescale_learned_sigmas, timestep_respacing=timestep_respacing,
    )  # fmt: skip
    return model, diffusion


def sr_create_model(
    large_size, small_size, num_channels, num_res_blocks, learn_sigma, class_cond, use_checkpoint,
    attention_resolutions, num_heads, num_head_channels, num_heads_upsample, use_scale_shift_norm, dropout,
    resblock_updown, use_fp16,
) -> SuperResModel:  # fmt: skip
    """An upsampler to large_size; what it is given may have any size (small_size is not needed, as there)."""
    return SuperResModel(
        image_size=large_size,
        in_channels=3,
        model_channels=num_channels,
        out_channels=6 if learn_sigma else 3,
        num_res_blocks=num_res_blocks,
        attention_resolutions=_rates(large_size, attention_resolutions),
        dropout=dropout,
        channel_mult=_levels(large_size, "", _SR_LEVELS),
        num_classes=NUM_CLASSES if class_cond else None,
        use_checkpoint=use_checkpoint,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_fp16=use_fp16,
    )


def create_gaussian_diffusion(
    *, steps=1000, learn_sigma=False, sigma_small=False, noise_schedule="linear", use_kl=False, predict_xstart=False,
    rescale_timesteps=False, rescale_learned_sigmas=False, timestep_respacing="",
) -> SpacedDiffusion:  # fmt: skip
    """The process that the options describe; timestep_respacing "" keeps all steps."""
    mse = gd.LossType.RESCALED_MSE if rescale_learned_sigmas else gd.LossType.MSE
    fixed = gd.ModelVarType.FIXED_SMALL if sigma_small else gd.ModelVarType.FIXED_LARGE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=gd.get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=gd.ModelMeanType.START_X if predict_xstart else gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE if learn_sigma else fixed,
        loss_type=gd.LossType.RESCALED_KL if use_kl else mse,
        rescale_timesteps=rescale_timesteps,
    )


def _levels(image_size: int, channel_mult: str, known: dict[int, tuple[float, ...]]) -> tuple[float, ...]:
    if channel_mult:
        return tuple(float(m) for m in channel_mult.split(","))
    if image_size not in known:
        raise ValueError(f"unsupported image size: {image_size}; known: {', '.join(map(str, sorted(known)))}")
    return known[image_size]


def _rates(image_size: int, resolutions: str) -> tuple[int, ...]:
    return tuple(image_size // int(size) for size in resolutions.split(","))


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: dict[str, Any]) -> None:
    """An option for each entry; None means text, and booleans are written out ("True")."""
    for name, value in default_dict.items():
        kind: Any = str if value is None else str2bool if isinstance(value, bool) else type(value)
        parser.add_argument(f"--{name}", default=value, type=kind)


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The named options."""
    return {key: getattr(args, key) for key in keys}


def select_args(args_dict: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The named options of a dictionary (RePaint's name for it)."""
    return {key: args_dict[key] for key in keys}


def str2bool(v: Any) -> bool:
    """yes, true, t, y, 1 and their opposites, in any case."""
    if isinstance(v, bool):
        return v
    if v.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if v.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("boolean value expected")
