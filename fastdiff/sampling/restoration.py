"""Conditional sampling as a user calls it: ``inpaint`` and ``denoise``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastdiff.choices import INPAINTING, usual_sampling
from fastdiff.diffusion.config import is_consistent
from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.sampling.api import Sampler
from fastdiff.sampling.conditions import ANNEALING, Denoise, Inpaint
from fastdiff.sampling.options import RestorationOptions
from fastdiff.sampling.request import REQUEST_ARGUMENTS
from fastdiff.scalars import whole

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CALL = (REQUEST_ARGUMENTS - {"condition"}) | {"progress"}
# Noise in the steps, and repeated steps, let the unknown pixels adapt to the known ones: docs/conditional_sampling.md.
REPEATS = 5


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
    if repeats is None:
        repeats = REPEATS if sampler.is_reverse_chain else 1
    condition = Inpaint(image, mask, repeats).fitted(count * n, shape)
    if sampler.clip:
        _check_range(condition.image[~condition.mask])
    return sampler(count * n, condition=condition, **call)


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
