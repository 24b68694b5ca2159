"""The likelihood itself, estimated from trajectories of the forward process (equation 9)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastdiff.diffusion.kernels import DiffusionKernels
from fastdiff.dpm2015.bound import NATS, Network
from fastdiff.errors import FastdiffError


def log_likelihood(
    diffusion: DiffusionKernels,
    network: Network,
    x_0: Tensor,
    *,
    trajectories: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    r"""log2 p(x_0), bits per sample, [N] float64, by importance sampling.

    .. math::
        p(x_0) = \mathbb{E}_{q(x_{1:T} | x_0)} \Big[ p(x_T)
                 \prod_{t=1}^T \frac{p(x_{t-1} | x_t)}{q(x_t | x_{t-1})} \Big]

    The logarithm of a mean over trajectories lies below log p on average, and above what one trajectory gives, whose
    mean is K; it rises towards log p with their number.

    Args:
        x_0: [N,*] data; trajectories: of each.
        progress: called with 1 after each step.

    Raises:
        FastdiffError: trajectories below 1; data that the diffusion cannot start from.

    Source: Sohl-Dickstein et al. 2015, equation 9; the mean over trajectories as in Burda, Grosse & Salakhutdinov 2016.
    """
    if isinstance(trajectories, bool) or not isinstance(trajectories, int) or trajectories < 1:
        raise FastdiffError(f"trajectories must be a whole number of at least 1, got {trajectories!r}")
    diffusion.check_data(x_0)
    generator = torch.Generator().manual_seed(seed)
    x = x_0.repeat_interleave(trajectories, 0)
    total = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for step in range(1, diffusion.steps + 1):
            t = torch.full((len(x),), step)
            forward = diffusion.forward(x, t)
            noisy = _drawn(forward, generator)
            back = diffusion.reverse(network(noisy, t), noisy, t) if step > 1 else diffusion.forward(noisy, t)
            ratio = back.log_prob(x) - forward.log_prob(noisy)
            total += ratio.double().flatten(1).sum(1)
            x = noisy
            progress(1)
        total += diffusion.prior(x).log_prob(x).double().flatten(1).sum(1)
    each = total.reshape(len(x_0), trajectories)
    return (torch.logsumexp(each, 1) - math.log(trajectories)) / NATS


def _drawn(kernel: torch.distributions.Distribution, generator: torch.Generator) -> Tensor:
    if isinstance(kernel, torch.distributions.Normal):
        noise = torch.randn(kernel.mean.shape, dtype=kernel.mean.dtype, generator=generator)
        return kernel.mean + kernel.stddev * noise
    assert isinstance(kernel, torch.distributions.Bernoulli)
    return (torch.rand(kernel.probs.shape, dtype=kernel.probs.dtype, generator=generator) < kernel.probs).to(
        kernel.probs.dtype
    )
