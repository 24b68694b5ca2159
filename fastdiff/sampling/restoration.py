"""Conditional sampling as a user calls it: ``inpaint``, ``super_resolve``, ``colourise`` and ``denoise``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.choices import INPAINTING, usual_sampling
from fastdiff.diffusion.config import is_consistent
from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.sampling.api import Sampler
from fastdiff.sampling.conditions import ANNEALING, Denoise, Inpaint, Observe, known_means
from fastdiff.sampling.options import RestorationOptions
from fastdiff.sampling.request import REQUEST_ARGUMENTS
from fastdiff.scalars import whole

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CALL = (REQUEST_ARGUMENTS - {"condition"}) | {"progress"}
# Noise in the steps, and repeated steps, let the unknown pixels adapt to the known ones: docs/conditional_sampling.md.
REPEATS = 5
LUMA = (0.2989, 0.5870, 0.1140)  # of red, green and blue: ITU-R BT.601


def inpaint(
    model: Model,
    image: Tensor,
    mask: Tensor,
    n: int = 1,
    *,
    repeats: int | None = None,
    **options: Unpack[RestorationOptions],
) -> Tensor:
    """n completions of an image, [n,C,H,W] float32 in [-1, 1], whose known pixels are the image's to the bit.

        filled = fastdiff.inpaint(model, image, mask, 4, classes=9)     # mask: 1 = unknown, 0 = known

    Args:
        model: ``model(x, t, **cond)``; a U-Net of this package, or any callable with shape and diffusion in options.
        image: [C,H,W] floating point in [-1, 1]; or [M,C,H,W], which gives M n results, ordered by image.
        mask: 1 where the image is to be filled, 0 where it is known: [H,W], [C,H,W] or, one for each image,
            [M,1 or C,H,W]; bool or numbers.
        n: number of completions of each image.
        repeats: number of times each step is made, see :class:`~.conditions.Inpaint`. More repeats
            need as many times the model calls and have less bias. None: 5 if the sampler can repeat steps, else 1.
        options: the named arguments of ``fastdiff.sample`` (classes, seed, seeds, noise, cond, progress) and the fields
            of ``Sampler``; if not given "ancestral" with 50 steps, for a model of few steps "consistency" with 10.

    Raises:
        FastdiffError: an image or mask of another size, with NaN, or out of range; a mask with other values than
            0 and 1 or with nothing to fill; options that do not fit.

    Source: Sohl-Dickstein et al. 2015, section 2.5. The method and its bias: :class:`~.conditions.Inpaint`.
    """
    n = whole(n)
    if not isinstance(n, int):
        raise FastdiffError(f"n must be a whole number, the completions of each image, got {n!r}")
    sampler, call = _sampler(model, options)
    shape = sampler.sample_shape
    count = len(image) if image.ndim > len(shape) else 1
    if image.ndim > len(shape):
        image = image.repeat_interleave(max(n, 1), 0)
    if mask.ndim > len(shape) and len(mask) == count:
        mask = mask.repeat_interleave(max(n, 1), 0)
    if n < 1 or count < 1:
        raise FastdiffError(f"there must be at least one image and one completion, got {count} and n = {n}")
    condition = Inpaint(image, mask, _repeats(sampler, repeats)).fitted(count * n, shape)
    if sampler.clip:
        _check_range(condition.image[~condition.mask])
    return sampler(count * n, condition=condition, **call)


def super_resolve(
    model: Model,
    small: Tensor,
    n: int = 1,
    *,
    repeats: int | None = None,
    **options: Unpack[RestorationOptions],
) -> Tensor:
    """n large images of each small one, [n,C,H,W] float32, whose averages over blocks of pixels are the small image's.

        large = fastdiff.super_resolve(model, small, 4, classes=9)      # small [1, 8, 8], large [4, 1, 32, 32]

    No model of super-resolution is needed: a denoiser of the large images fills in what the averages leave open.

    Args:
        model: as in :func:`inpaint`.
        small: [C,h,w] floating point in [-1, 1], or [M,C,h,w], which gives M n results, ordered by image; H and W are
            whole multiples of h and w.
        n: number of results for each image.
        repeats, options: as in :func:`inpaint`.

    Raises:
        FastdiffError: a size that does not divide the model's, NaN, values out of range; options that do not fit.

    Source: Song et al. 2023, appendix D and algorithm 4. The method: :class:`~.conditions.Observe`.
    """
    sampler, call = _sampler(model, options)
    known = known_means(small, sampler.sample_shape[1:])
    if sampler.clip:
        _check_range(small)
    return _observed(sampler, known.image, known.project, n, repeats, call)


def colourise(
    model: Model,
    grey: Tensor,
    n: int = 1,
    *,
    repeats: int | None = None,
    **options: Unpack[RestorationOptions],
) -> Tensor:
    """n colourings of each grey image, [n,3,H,W] float32, whose luma 0.2989 R + 0.5870 G + 0.1140 B is the grey image.

    Args:
        model: as in :func:`inpaint`, of RGB images.
        grey: [1,H,W] floating point in [-1, 1], or [M,1,H,W], which gives M n results, ordered by image.
        n: number of results for each image.
        repeats, options: as in :func:`inpaint`.

    Raises:
        FastdiffError: a model of other images, another size, NaN, values out of range; options that do not fit.

    Source: Song et al. 2023, appendix D and algorithm 4, whose first colour axis is the direction of luma.
    """
    sampler, call = _sampler(model, options)
    shape = sampler.sample_shape
    if shape[0] != 3:
        raise FastdiffError(f"only a model of RGB images can colourise; this one's have shape {list(shape)}")
    if tuple(grey.shape[-3:]) != (1, *shape[1:]):
        raise FastdiffError(
            f"grey must have shape {[1, *shape[1:]]}, or one such for each image, got {list(grey.shape)}"
        )
    if sampler.clip:
        _check_range(grey)
    weights = torch.tensor(LUMA, dtype=torch.float64)
    weights = (weights / weights.norm()).reshape(3, 1, 1)

    def luma(x: Tensor) -> Tensor:
        direction = weights.to(x)
        return (x * direction).sum(-3, keepdim=True) * direction

    length = torch.tensor(LUMA, dtype=torch.float64).norm()
    image = grey / length.to(grey) * weights.to(grey)
    return _observed(sampler, image, luma, n, repeats, call)


def denoise(
    model: Model,
    observed: Tensor,
    noise_std: float,
    *,
    schedule: ANNEALING = "constant",
    **options: Unpack[RestorationOptions],
) -> Tensor:
    """Denoised images, [n,C,H,W] float32 in [-1, 1]: samples given the model and a noisy observation of each image.

        clean = fastdiff.denoise(model, noisy, 0.5)     # noisy = clean + 0.5 * torch.randn_like(clean)

    Args:
        model: as in :func:`inpaint`.
        observed: y = x_0 + noise, [n,C,H,W] floating point, in the units of the images but not limited to [-1, 1].
        noise_std: standard deviation of the noise, > 0, in the same units.
        schedule: "constant" or "annealed", see :class:`~.conditions.Denoise`.
        options: as in :func:`inpaint`; the sampler must be "ancestral" (as if not given) or "ddim" with eta 1.

    Raises:
        FastdiffError: another shape, NaN, a noise_std that is not positive; options that do not fit.

    Source: Sohl-Dickstein et al. 2015, section 2.5 and figure 3.
    """
    condition = Denoise(observed, noise_std, schedule)
    sampler, call = _sampler(model, options)
    return sampler(len(observed), condition=condition, **call)


def _observed(
    sampler: Sampler,
    image: Tensor,
    project: Callable[[Tensor], Tensor],
    n: int,
    repeats: int | None,
    call: dict[str, Any],
) -> Tensor:
    """n samples with the known part of each image [C,*] or [M,C,*]."""
    n = whole(n)
    image = image if image.ndim > len(sampler.sample_shape) else image[None]
    if not isinstance(n, int) or n < 1 or not len(image):
        raise FastdiffError(
            f"there must be at least one image and one result, got {len(image)} and n = {n!r}"
        )
    condition = Observe(image.repeat_interleave(n, 0), project, _repeats(sampler, repeats))
    return sampler(len(condition.image), condition=condition, **call)


def _repeats(sampler: Sampler, asked: int | None) -> int:
    """How often each step is made, where nothing is asked for: more than once if the sampler can."""
    if asked is not None:
        return asked
    return REPEATS if sampler.is_reverse_chain else 1


def _sampler(model: Model, options: Any) -> tuple[Sampler, dict[str, Any]]:
    """The sampler for these options, and the remaining options for its call."""
    fields = {name: value for name, value in options.items() if name not in _CALL}
    call = {name: value for name, value in options.items() if name in _CALL}
    consistent = is_consistent(model, fields.get("diffusion"))
    sampler, steps = usual_sampling(fields.get("sampler"), fields.get("steps"), consistent, INPAINTING)
    return Sampler(model, **{**fields, "sampler": sampler, "steps": steps}), call


def _check_range(known: Tensor) -> None:
    if known.numel() and not bool((known.abs() <= 1).all()):
        raise FastdiffError(
            f"image must lie in [-1, 1], but its known pixels go from {known.min():g} to {known.max():g}; "
            "images of 0 to 255 become x / 127.5 - 1"
        )
