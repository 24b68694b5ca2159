"""The cascade of Dhariwal & Nichol 2021: a model of small images, and a super-resolution model that enlarges them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.api import Sampler, from_uint8, to_uint8
from fastdiff.sampling.conditions import known_means
from fastdiff.sampling.options import SamplerOptions
from fastdiff.sampling.progress import Follow
from fastdiff.sampling.request import Classes
from fastdiff.scalars import whole

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Bits flipped in a run's seed, so that the two models of a cascade draw different noise.
UPSAMPLER_RUN = 1 << 31


def upsampler_seeds(n: int, seed: int = 0, first: int = 0) -> Tensor:
    """Philox keys [n] of an upsampler's samples in run ``seed``."""
    return sample_seeds(n, whole(seed) ^ UPSAMPLER_RUN, first)


def low_resolution(images: Tensor) -> Tensor:
    """Images [n,C,h,w] in [-1, 1] as an upsampler sees them, rounded to 8 bits."""
    return from_uint8(to_uint8(images))


def small_images(images: Tensor, sampler: Sampler, keep_means: bool) -> dict[str, Any]:
    """The arguments of an upsampler's call that say what it enlarges."""
    small = low_resolution(images)
    known = known_means(small, sampler.sample_shape[1:]) if keep_means else None
    return {"cond": {"low_res": small}, "condition": known}


def upsample(
    upsampler: Model,
    images: Tensor,
    *,
    classes: Classes | None = None,
    seed: int = 0,
    seeds: Tensor | None = None,
    keep_means: bool = False,
    progress: Follow = True,
    **options: Unpack[SamplerOptions],
) -> Tensor:
    """Small images enlarged by a super-resolution model, [n,C,H,W] float32 in [-1, 1].

    The small images are rounded to 8 bits first, as in guided-diffusion's scripts and in the models' training.

    Args:
        upsampler: a U-Net with ``low_res``, e.g. ``fastdiff.load("64_256_upsampler.pt")``.
        images: [n,C,h,w] in [-1, 1].
        classes: one for all, or n, for a class-conditional upsampler.
        seed: random seed of the run.
        seeds: n int64 Philox keys, in place of ``seed``.
        keep_means: make the means of the large images over blocks of pixels exactly the small images, which is what
            small images are in training; the upsampler then adds the detail alone (:class:`~.conditions.Observe`).
        options: the fields of ``Sampler``.

    Raises:
        FastdiffError: a model that is no super-resolution model, images that do not fit.

    Source: Dhariwal & Nichol 2021, section 6.3; Saharia et al. 2021 (the conditioning).
    """
    config: Any = getattr(upsampler, "config", None)
    if getattr(config, "low_res", None) is None:
        raise FastdiffError(
            "upsample needs a super-resolution model, such as 64_256_upsampler.pt; this model is none"
        )
    keys = upsampler_seeds(len(images), seed) if seeds is None else seeds
    with Sampler(upsampler, **options) as sampler:
        return sampler(
            len(images),
            classes=classes,
            seeds=keys,
            **small_images(images, sampler, keep_means),
            progress=progress,
        )


def cascade(
    base: Model,
    upsampler: Model,
    n: int,
    *,
    classes: Classes | None = None,
    seed: int = 0,
    upsampler_options: SamplerOptions | None = None,
    keep_means: bool = False,
    progress: Follow = True,
    **options: Unpack[SamplerOptions],
) -> Tensor:
    """n large images, [n,C,H,W] float32 in [-1, 1]: sampled small by one model and enlarged by another.

        images = fastdiff.cascade(base, upsampler, 8, classes=207, sampler="dpmpp", steps=25)

    Args:
        classes: one for all, or n; for those of the two models that have classes.
        keep_means: as of :func:`upsample`.
        options: fields of ``Sampler`` for the base, and for the upsampler where ``upsampler_options`` has no other;
            shape and diffusion are each model's own, and guidance is left out where an upsampler has no classes.

    Raises:
        FastdiffError: see :func:`upsample` and ``fastdiff.sample``.
    """
    with Sampler(base, **options) as sampler:
        small = sampler(n, classes=classes, seed=seed, progress=progress)
    config: Any = getattr(upsampler, "config", None)
    unconditional = getattr(config, "num_classes", None) is None
    own = ("shape", "diffusion", *(["guidance_scale"] if unconditional else []))
    shared = {name: value for name, value in options.items() if name not in own}
    enlarging: Any = {**shared, **(upsampler_options or {})}
    return upsample(
        upsampler,
        small,
        classes=None if unconditional else classes,
        seed=seed,
        keep_means=keep_means,
        progress=progress,
        **enlarging,
    )


def classifier_log_probability(classifier: Any) -> Any:
    """log p(y | x_t) of a noisy-image classifier, for ``fastdiff.Guide(f, scale, {"y": labels})``."""

    def log_r(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        logits = classifier(x.to(torch.promote_types(x.dtype, torch.float32)), t)
        return torch.log_softmax(logits, dim=-1).gather(1, y[:, None])[:, 0]

    return log_r
