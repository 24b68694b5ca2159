"""Sampling from the reverse process, from x_T down to x_0, with known elements held if there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

from fastdiff.diffusion.binomial import BinomialDiffusion
from fastdiff.diffusion.kernels import DiffusionKernels
from fastdiff.dpm2015.bound import Network
from fastdiff.dpm2015.particles import sample_weighted
from fastdiff.errors import FastdiffError
from fastdiff.ops import bernoulli_step, normal
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling.conditions import Condition

KNOWN_STREAM = 2  # of Philox, for the noise on known elements; stream 0 is the steps'
BACK_STREAM = 4  # for steps back to more noise


def draw(
    kernel: Distribution, seeds: Tensor, step: int, stream: int = 0, factor: Tensor | None = None
) -> Tensor:
    """A sample of a kernel over elements, [N,*], from each sample's own Philox stream.

    Bits are drawn by the op ``bernoulli_step`` (with its factor), normals by ``philox_normal``: sample i is the same in
    any batch.
    """
    if isinstance(kernel, Normal):
        return kernel.mean + kernel.stddev * normal(seeds, kernel.mean.shape[1:], step=step, stream=stream)
    assert isinstance(kernel, Bernoulli)
    # float32, as the kernels need it; a probability needs no more digits.
    probability = kernel.probs.float().contiguous()
    factor = None if factor is None else factor.float()
    bits = bernoulli_step(probability, seeds, torch.tensor(step), factor=factor, stream=stream)
    return bits.to(kernel.probs.dtype)


def sample(
    diffusion: DiffusionKernels,
    network: Network,
    like: Tensor,
    *,
    seed: int = 0,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    condition: Condition | None = None,
    factor: Tensor | None = None,
    keep: Sequence[int] = (0,),
    repeats: int = 1,
    particles: int = 1,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[int, Tensor]:
    """x_T ~ pi, then x_{t-1} ~ p(x_{t-1} | x_t) down to x_0; the last step is q's kernel, which is not learned.

    Args:
        like: [N,*], gives the samples' shape and dtype.
        known, mask: [N,*] values and, as bool, where they hold. Each x_t has them diffused to step t, x_0 as they
            are: multiplying the kernel by a delta (section 2.5), at the noise that the network expects.
        condition: ``fastdiff.Guide`` (any smooth r, by the gradient of its logarithm) or ``fastdiff.Denoise``, which
            multiply each learned kernel of a Gaussian diffusion: mu <- mu + Sigma grad log r(mu).
        factor: d [N,*] or [1,*] in [0, 1], the same for bits: c <- c d / (c d + (1 - c) (1 - d)), with d = r(1)
            normalised over the bit's two states; 1/2 says nothing.
        keep: the steps to return.
        repeats: how often each step is made: in between the sample goes one step back by q. Known values then reach
            the rest of the sample, which a single pass through the noise barely lets them (Lugmayr et al. 2022).
        particles: of bits, how many are carried for each sample and resampled by their weights, which draws from the
            model given ``known`` or ``factor`` exactly as their number grows (:mod:`fastdiff.dpm2015.particles`).
        progress: called with 1 after each step.

    Returns:
        {t: x_t [N,*]} for t in ``keep``.

    Raises:
        FastdiffError: known values or a mask of another shape, or only one of the two; steps outside 0 .. T; a
            condition for bits, or a factor for anything else; repeats or particles below 1, particles of anything
            but bits or with steps to keep on the way.
    """
    _check_known(like, known, mask)
    is_binomial = isinstance(diffusion.prior(like), Bernoulli)
    _check_conditions(is_binomial, condition, factor)
    if condition is not None:
        condition = condition.fitted(len(like), like.shape[1:])
    if not all(0 <= t <= diffusion.steps for t in keep):
        raise FastdiffError(f"steps to keep must lie within 0 .. {diffusion.steps}, got {list(keep)}")
    _check_counts(repeats, particles, is_binomial, keep)
    if particles > 1:
        assert isinstance(diffusion, BinomialDiffusion)
        chance = torch.full_like(like, 0.5) if factor is None else factor.to(like.dtype).expand_as(like)
        chance = chance if known is None or mask is None else torch.where(mask, known.to(like.dtype), chance)
        with torch.no_grad():
            return {0: sample_weighted(diffusion, network, like, chance, particles=particles, seed=seed,
                                       progress=progress)}  # fmt: skip
    seeds = sample_seeds(len(like), seed)

    def held(x: Tensor, t: int, number: int) -> Tensor:
        if known is None or mask is None:
            return x
        steps = torch.full((len(x),), t)
        at = t + number * (diffusion.steps + 1)
        there = known if t == 0 else draw(diffusion.cumulative(known, steps), seeds, at, KNOWN_STREAM)
        return torch.where(mask, there, x)

    with torch.no_grad():
        x = held(draw(diffusion.prior(like), seeds, diffusion.steps), diffusion.steps, 0)
        kept = {diffusion.steps: x}
        for step in range(diffusion.steps, 0, -1):
            t = torch.full((len(x),), step)
            # The last step is q's own kernel: there is nothing to be gained by making it again.
            for number in range(repeats if step > 1 else 1):
                at = step - 1 + number * (diffusion.steps + 1)
                if number:
                    x = draw(diffusion.forward(x, t), seeds, at, BACK_STREAM)
                kernel = diffusion.reverse(network(x, t), x, t) if step > 1 else diffusion.forward(x, t)
                if condition is not None and step > 1:
                    kernel = _multiplied(
                        kernel, condition, t - 1, (diffusion.steps - step + 1) / diffusion.steps
                    )
                x = held(draw(kernel, seeds, at, factor=factor if step > 1 else None), step - 1, number)
            if step - 1 in keep:
                kept[step - 1] = x
            progress(1)
    return {t: kept[t] for t in keep}


def _check_known(like: Tensor, known: Tensor | None, mask: Tensor | None) -> None:
    if (known is None) != (mask is None):
        raise FastdiffError("known values need a mask, and a mask known values")
    for name, given in (("known values", known), ("the mask", mask)):
        if given is not None and given.shape != like.shape:
            raise FastdiffError(f"{name} must be {list(like.shape)}, as the samples, got {list(given.shape)}")


def _check_conditions(is_binomial: bool, condition: Condition | None, factor: Tensor | None) -> None:
    if is_binomial and condition is not None:
        raise FastdiffError(
            "bits have no gradient: give factor, what is known of each bit, instead of condition"
        )
    if not is_binomial and factor is not None:
        raise FastdiffError("factor is for bits; give condition, for example fastdiff.Guide(log_r)")


def _check_counts(repeats: int, particles: int, bits: bool, keep: Sequence[int]) -> None:
    for name, count in (("repeats", repeats), ("particles", particles)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise FastdiffError(f"{name} must be a whole number of at least 1, got {count!r}")
    if particles > 1 and not bits:
        raise FastdiffError("particles are for bits; give repeats for anything else")
    if particles > 1 and (repeats > 1 or tuple(keep) != (0,)):
        raise FastdiffError("particles keep x_0 alone and need no repeats: leave keep and repeats out")


def _multiplied(kernel: Distribution, condition: Condition, t: Tensor, progress: float) -> Distribution:
    """The Gaussian that is proportional to the kernel times r, at the step it leads to."""
    assert isinstance(kernel, Normal)
    mean, variance = condition.moments(kernel.mean, kernel.variance, t, progress)
    return Normal(mean, variance.sqrt())
