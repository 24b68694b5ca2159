"""Interpolation between two images, or two seeds, through their latents: DDIM inversion, then DDIM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.choices import INVERSION, usual_sampling
from fastdiff.diffusion.config import is_consistent
from fastdiff.diffusion.gaussian import Model
from fastdiff.errors import FastdiffError
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.api import Sampler
from fastdiff.sampling.options import SamplerOptions
from fastdiff.sampling.progress import Follow
from fastdiff.sampling.request import Request
from fastdiff.scalars import whole

if TYPE_CHECKING:
    from typing_extensions import Unpack


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    r"""Spherical interpolation, which keeps the norm that Gaussian latents have.

    .. math:: \frac{\sin((1 - w) \theta)}{\sin \theta} a + \frac{\sin(w \theta)}{\sin \theta} b, \qquad
        \cos \theta = \frac{a \cdot b}{|a| |b|}

    Args:
        a, b: [*] of one shape.
        weights: [n], 0 for a, 1 for b.

    Returns:
        [n, *]; linear where a and b are parallel.

    Source: Shoemake 1985; for latents, Song, Meng & Ermon 2021, appendix D.5.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    theta = torch.acos(cosine)
    w = torch.as_tensor(weights).to(a).reshape(-1, *[1] * a.ndim)
    if float(torch.sin(theta)) < 1e-6:
        return (1 - w) * a + w * b
    return (torch.sin((1 - w) * theta) * a + torch.sin(w * theta) * b) / torch.sin(theta)


def interpolate(
    model: Model,
    first: Tensor | int,
    last: Tensor | int,
    n: int = 8,
    *,
    classes: int | None = None,
    progress: Follow = True,
    **options: Unpack[SamplerOptions],
) -> Tensor:
    """n images that interpolate between two, [n,C,H,W] float32 in [-1, 1]; the ends are the two, up to step error.

        row = fastdiff.interpolate(model, images[0], images[1], 8, classes=9, steps=100)
        row = fastdiff.interpolate(model, 3, 7, 8, classes=9)       # between the images of two seeds

    Args:
        first, last: images [C,H,W] in [-1, 1]; or random seeds, each that of ``sample(model, 1, seed=first)``.
        n: number of images, both ends included, at least 2.
        classes: the class of all, for a class-conditional model.
        options: fields of ``Sampler``; if not given "ddim" with 50 steps, which images need; for a model of few steps,
            between seeds, "consistency" with 1.

    Raises:
        FastdiffError: images of different shapes, n below 2, a sampler that cannot be reversed or draws noise.
    """
    n = whole(n)
    if not isinstance(n, int) or n < 2:
        raise FastdiffError(f"n must be at least 2, the two ends, got {n!r}")
    given: Any = options
    consistent = is_consistent(model, given.get("diffusion"))
    given["sampler"], given["steps"] = usual_sampling(
        given.get("sampler"), given.get("steps"), consistent, INVERSION
    )
    with Sampler(model, **given) as sampler:
        latents = _latents(sampler, whole(first), whole(last), classes, progress)
        between = slerp(latents[0], latents[1], torch.linspace(0, 1, n))
        return sampler(n, classes=classes, noise=between, progress=progress)


def _latents(sampler: Sampler, first: Any, last: Any, classes: int | None, progress: Follow) -> Tensor:
    """x_T of both ends, [2,C,H,W]."""
    if isinstance(first, int) and isinstance(last, int):
        return Request(torch.cat([sample_seeds(1, seed) for seed in (first, last)])).initial_state(
            sampler.sample_shape
        )
    if not isinstance(first, Tensor) or not isinstance(last, Tensor):
        raise FastdiffError(
            f"give two images or two seeds, got {type(first).__name__} and {type(last).__name__}"
        )
    if first.shape != last.shape:
        raise FastdiffError(
            f"the two images must have one shape, got {list(first.shape)} and {list(last.shape)}"
        )
    return sampler.encode(torch.stack([first, last]), classes=classes, progress=progress)
