"""The variational bound: one term of it, and bits per dimension of the whole chain.

All results are in bits per dimension: nats, averaged over channels and positions, divided by ln 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import GaussianDiffusion, Model

_TINY = 1e-12  # the smallest probability whose logarithm is taken


class BoundTerm(NamedTuple):
    """One term of the bound: bits [N], and the model's estimate of x_0 [N,C,*]."""

    bits: Tensor
    x0: Tensor


class BitsPerDim(NamedTuple):
    """The bound of a chain of T steps, per sample.

    ``vb``, ``x0_mse`` and ``epsilon_mse`` are [N, T], column t for step t; ``total`` = prior + sum of vb.
    """

    total: Tensor
    prior: Tensor
    vb: Tensor
    x0_mse: Tensor
    epsilon_mse: Tensor


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the first dimension: [N,*] to [N]."""
    return x.flatten(1).mean(1)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2))) elementwise, in nats."""
    # e^d - 1 - d comes first: near the prior it is small, and adding 1 would lose its digits.
    d = log_variance1 - log_variance2
    return 0.5 * (torch.expm1(d) - d + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def gaussian_log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, exp(log_variance)) elementwise, in nats."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean) ** 2 * torch.exp(-log_variance))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability, in nats, of the 8-bit level x under N(mean, exp(log_variance)) (DDPM equation 13).

    The levels are 2 k / 255 - 1; each owns the interval of width 2/255 around it, the two outermost ones the
    whole tail. The normal distribution function is the tanh approximation that published ADM and IDDPM
    likelihoods were computed with: 0.5 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))).
    """
    z, half_width = x - mean, 1 / 255
    precision = torch.exp(-0.5 * log_variance)
    upper = normal_cdf(precision * (z + half_width))
    lower = normal_cdf(precision * (z - half_width))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=_TINY).log()


def normal_cdf(z: Tensor) -> Tensor:
    """The tanh approximation of the standard normal distribution function, elementwise."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def bound_term(
    diffusion: GaussianDiffusion,
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    clip: bool = True,
    discrete: bool = True,
) -> BoundTerm:
    """One term of the bound for the model's ``output`` at x_t (DDPM equation 5).

    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and L_0 = -log p(x_0 | x_1) at t = 0.

    Args:
        output: [N,C,*], or [N,2C,*] with learned variance.
        x0, x_t: [N,C,*]. t: [N] int64.
        clip: clamp the model's estimate of x_0 to [-1, 1].
        discrete: x0 holds 8-bit levels and L_0 is a probability; False: L_0 is a density.
    """
    true = diffusion.q_posterior(x0, x_t, t)
    model = diffusion.moments(output, x_t, t, clip=clip)
    kl = mean_flat(normal_kl(true.mean, true.log_variance, model.mean, model.log_variance))
    likelihood = discretized_gaussian_log_likelihood if discrete else gaussian_log_density
    decoder = -mean_flat(likelihood(x0, model.mean, model.log_variance))
    return BoundTerm(torch.where(t == 0, decoder, kl) / math.log(2), model.x0)


def prior_bits(diffusion: GaussianDiffusion, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, 1)) in bits per dimension, [N]."""
    t = torch.full((x0.shape[0],), diffusion.steps - 1, device=x0.device)
    q = diffusion.q_mean_variance(x0, t)
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    return mean_flat(normal_kl(q.mean, q.log_variance, zero, zero)) / math.log(2)


@torch.no_grad()
def bits_per_dim(
    diffusion: GaussianDiffusion,
    model: Model,
    x0: Tensor,
    *,
    clip: bool = True,
    discrete: bool = True,
    noise: Callable[[int], Tensor] | None = None,
    **cond: Any,
) -> BitsPerDim:
    """The bound of the whole chain: an upper limit of -log2 p(x_0) per dimension, one noise draw per step.

    Args:
        x0: [N,C,*] in [-1, 1]; 8-bit levels 2 k / 255 - 1 if ``discrete``.
        clip, discrete: see :func:`bound_term`.
        noise: noise(t) gives the standard normal noise, shaped like x0, of step t; ``torch.randn_like`` if
            None.

    Raises:
        FastdiffError: the model's output has the wrong shape.
    """
    vb, x0_mse, epsilon_mse = [], [], []
    for step in reversed(range(diffusion.steps)):
        t = torch.full((x0.shape[0],), step, device=x0.device)
        z = torch.randn_like(x0) if noise is None else noise(step)
        x_t = diffusion.q_sample(x0, t, z)
        output = model(x_t, diffusion.model_time(t), **cond)
        term = bound_term(diffusion, output, x0, x_t, t, clip=clip, discrete=discrete)
        vb.append(term.bits)
        x0_mse.append(mean_flat((term.x0 - x0) ** 2))
        epsilon_mse.append(mean_flat((diffusion.predict_epsilon(term.x0, x_t, t) - z) ** 2))
    by_step = [torch.stack(terms[::-1], dim=1) for terms in (vb, x0_mse, epsilon_mse)]
    prior = prior_bits(diffusion, x0)
    return BitsPerDim(prior + by_step[0].sum(1), prior, *by_step)
