"""Sampling from the reverse process, from x_T down to x_0, with known elements held if there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

from fastdiff.diffusion.kernels import DiffusionKernels
from fastdiff.dpm2015.bound import Network
from fastdiff.errors import FastdiffError


def draw(kernel: Distribution, noise: Tensor) -> Tensor:
    """A sample of a kernel over elements, from its diffusion's kind of noise, [N,*]."""
    if isinstance(kernel, Normal):
        return kernel.mean + kernel.stddev * noise
    assert isinstance(kernel, Bernoulli)
    return (noise < kernel.probs).to(noise.dtype)


def sample(
    diffusion: DiffusionKernels,
    network: Network,
    like: Tensor,
    *,
    seed: int = 0,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    keep: Sequence[int] = (0,),
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[int, Tensor]:
    """x_T ~ pi, then x_{t-1} ~ p(x_{t-1} | x_t) down to x_0; the last step is q's kernel, which is not learned.

    Args:
        like: [N,*], gives the samples' shape and dtype.
        known, mask: [N,*] values and, as bool, where they hold. Each x_t has them diffused to step t, x_0 as they
            are: multiplying the kernel by a delta (section 2.5), at the noise that the network expects.
        keep: the steps to return.
        progress: called with 1 after each step.

    Returns:
        {t: x_t [N,*]} for t in ``keep``.

    Raises:
        FastdiffError: known values or a mask of another shape, or only one of the two; steps outside 0 .. T.
    """
    if (known is None) != (mask is None):
        raise FastdiffError("known values need a mask, and a mask known values")
    for name, given in (("known values", known), ("the mask", mask)):
        if given is not None and given.shape != like.shape:
            raise FastdiffError(f"{name} must be {list(like.shape)}, as the samples, got {list(given.shape)}")
    if not all(0 <= t <= diffusion.steps for t in keep):
        raise FastdiffError(f"steps to keep must lie within 0 .. {diffusion.steps}, got {list(keep)}")
    generator = torch.Generator().manual_seed(seed)

    def held(x: Tensor, t: int) -> Tensor:
        if known is None or mask is None:
            return x
        steps = torch.full((len(x),), t)
        there = known if t == 0 else diffusion.diffuse(known, steps, diffusion.noise(x, generator))
        return torch.where(mask, there, x)

    with torch.no_grad():
        x = held(draw(diffusion.prior(like), diffusion.noise(like, generator)), diffusion.steps)
        kept = {diffusion.steps: x}
        for step in range(diffusion.steps, 0, -1):
            t = torch.full((len(x),), step)
            kernel = diffusion.reverse(network(x, t), x, t) if step > 1 else diffusion.forward(x, t)
            x = held(draw(kernel, diffusion.noise(x, generator)), step - 1)
            if step - 1 in keep:
                kept[step - 1] = x
            progress(1)
    return {t: kept[t] for t in keep}
