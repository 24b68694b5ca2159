"""Bits per dimension of images under a model: the bound of its whole chain, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.likelihood import BitsPerDim, bits_per_dim
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.images import Images
from fastdiff.inference import for_inference
from fastdiff.ops.philox import normal, sample_seeds
from fastdiff.scalars import plain


@dataclass(frozen=True)
class Likelihood:
    """The bound of N images over T steps, for each image, and the model's timestep of each step."""

    terms: BitsPerDim
    timesteps: Tensor  # [T] int64

    def summary(self) -> dict[str, Any]:
        """Means over the images, ready for JSON; the standard error is that of the mean of ``total``."""
        terms = BitsPerDim(*(t.double().cpu() for t in self.terms))
        n = len(terms.total)
        return {
            "images": n,
            "bits_per_dim": float(terms.total.mean()),
            "standard_error": float(terms.total.std() / n**0.5) if n > 1 else None,
            "prior": float(terms.prior.mean()),
            "timesteps": self.timesteps.tolist(),
            "vb": terms.vb.mean(0).tolist(),
            "x0_mse": terms.x0_mse.mean(0).tolist(),
            "epsilon_mse": terms.epsilon_mse.mean(0).tolist(),
        }


def image_nll(
    model: Any,
    images: Images,
    *,
    timestep_respacing: str = "",
    seed: int = 0,
    batch_size: int = 16,
    clip: bool = True,
    progress: bool = True,
) -> Likelihood:
    """Bits per dimension, as in guided-diffusion's image_nll.py (IDDPM section 3).

    The noise of image i at step t is Philox's for (seed, i, t), so that results do not depend on ``batch_size``.

    Args:
        model: a model with ``.diffusion`` and ``.config``. A class-conditional model is given the images' labels, or
            its null class if they have none.
        images: 8-bit images of the model's shape.
        timestep_respacing: steps of the chain, such as "250" or "ddim50"; "" for all.
        clip: clamp the model's estimates of x_0 to [-1, 1].

    Raises:
        FastdiffError: a respacing that does not fit, no labels, a batch_size below 1, NaN from the model.
    """
    batch_size, seed = plain(batch_size), plain(seed)
    if batch_size < 1:
        raise FastdiffError(f"batch_size must be at least 1, got {batch_size}")
    diffusion = GaussianDiffusion(model.diffusion)
    if timestep_respacing:
        diffusion = diffusion.respaced(timestep_respacing)
    device = next(model.parameters()).device
    labels, seeds = _labels(model, images), sample_seeds(len(images), seed)
    parts: list[BitsPerDim] = []
    calls = diffusion.steps * -(-len(images) // batch_size)
    fast = for_inference(model)
    with tqdm(total=calls, disable=not progress, unit="step") as bar:
        for rows in torch.arange(len(images)).split(batch_size):
            x0 = images.fetch(rows).to(device).float().div_(127.5).sub_(1)
            cond: dict[str, Any] = {} if labels is None else {"y": labels[rows].to(device)}
            part = bits_per_dim(
                diffusion,
                _counted(fast, bar),
                x0.contiguous(memory_format=torch.channels_last),
                clip=clip,
                noise=_noise(seeds[rows].to(device), images.shape),
                **cond,
            )
            if not part.total.isfinite().all():
                raise FastdiffError(f"the bound of images {rows[0]} to {rows[-1]} has NaN or Inf")
            parts.append(BitsPerDim(*(t.cpu() for t in part)))
            mean = float(torch.cat([p.total for p in parts]).mean())
            bar.set_postfix_str(f"{mean:.4f} bits/dim of {int(rows[-1]) + 1} images")
    return Likelihood(BitsPerDim(*(torch.cat(t) for t in zip(*parts, strict=True))), diffusion.timestep_map)


def _labels(model: Any, images: Images) -> Tensor | None:
    if model.config.num_classes is None:
        return None
    if images.labels is not None:
        return images.labels[: len(images)]
    if model.null_class is None:
        raise FastdiffError(
            f"the model has {model.config.num_classes} classes but {images.name} has no labels; give data with labels"
        )
    return torch.full((len(images),), model.null_class)


def _noise(seeds: Tensor, shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    return lambda step: normal(seeds, shape, step=step)


def _counted(model: Any, bar: tqdm) -> Callable[..., Tensor]:
    def call(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        bar.update()
        return model(x, t, **cond)

    return call
