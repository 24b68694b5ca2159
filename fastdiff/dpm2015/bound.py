"""The paper's bound K on the log-likelihood, in bits, with its entropies and its divergence at each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from fastdiff.diffusion.kernels import DiffusionKernels

Network = Callable[[Tensor, Tensor], Any]  # network(x_t [N,*], t [N]) -> what diffusion.reverse understands
NATS = math.log(2)  # a bit's


@dataclass(frozen=True)
class Bound:
    """K and its parts, in bits per sample (a sequence, a point, an image).

    Attributes:
        step_kl: [T - 1] float64, E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t = 2 .. T.
        error: standard error of the sum of step_kl.
        first_entropy, last_entropy: H_q(X_1 | X_0) and H_q(X_T | X_0).
        prior_entropy: the H_p(X_T) of equation 14, see :func:`entropies`.
        null: L_null, the data's log-likelihood under the prior.
        dimensions: elements of a sample.
    """

    step_kl: Tensor
    error: float
    first_entropy: float
    last_entropy: float
    prior_entropy: float
    null: float
    dimensions: int

    @property
    def k(self) -> float:
        """K = -sum_t KL + H_q(X_T | X_0) - H_q(X_1 | X_0) - H_p(X_T) (equation 14)."""
        return -float(self.step_kl.sum()) + self.last_entropy - self.first_entropy - self.prior_entropy

    @property
    def gain(self) -> float:
        """K - L_null, Table 1's second column."""
        return self.k - self.null


def step_kl(diffusion: DiffusionKernels, network: Network, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in nats, [N], at x_t = diffuse(x_0, t, noise).

    Args:
        x_0, noise: [N,*]; t: [N], 2 .. T.
    """
    x_t = diffusion.diffuse(x_0, t, noise)
    p = diffusion.reverse(network(x_t, t), x_t, t)
    return kl_divergence(diffusion.posterior(x_0, x_t, t), p).flatten(1).sum(1)


def entropies(diffusion: DiffusionKernels, x_0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """H_q(X_1 | X_0), H_q(X_T | X_0), H_p(X_T) and L_null, each averaged over x_0 [M,*], in nats per sample.

    With C_t = -E log pi(x_t), what stands for H_p(X_T) is C_T + C_0 - C_1: the last step, p(x_0 | x_1) =
    q(x_1 | x_0) pi(x_0) / pi(x_1) by detailed balance, leaves the ratio behind. For data of variance 1 (of mean r)
    all three are the prior's entropy, and this is the paper's term; for other data it keeps K a bound.
    """
    ones = torch.ones(len(x_0), dtype=torch.int64)
    first, last = diffusion.cumulative(x_0, ones), diffusion.cumulative(x_0, ones * diffusion.steps)
    prior = diffusion.prior(x_0)

    def surprise(q: Distribution) -> Tensor:
        return _total(kl_divergence(q, prior) + q.entropy())

    null = _total(prior.log_prob(x_0))
    return _total(first.entropy()), _total(last.entropy()), surprise(last) - null - surprise(first), null


def _total(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1).mean()


def bound(
    diffusion: DiffusionKernels,
    network: Network,
    x_0: Tensor,
    *,
    per_step: int = 8,
    batch: int = 4096,
    seed: int = 0,
    progress: Callable[[int], None] = lambda steps: None,
) -> Bound:
    """Estimate K: every step t = 2 .. T is visited with ``per_step`` samples of x_0 and x_t; no gradients.

    Args:
        x_0: [M,*] data, float32 or float64, of which samples are drawn; the entropies average over all of them.
        batch: samples that the network sees at once.
        progress: called with the number of steps done since the last call.

    Raises:
        FastdiffError: data that the diffusion cannot start from.
    """
    diffusion.check_data(x_0)
    generator = torch.Generator().manual_seed(seed)
    kl = torch.zeros(diffusion.steps - 1, dtype=torch.float64)
    variance = 0.0
    chunk = max(1, batch // per_step)
    with torch.no_grad():
        for start in range(2, diffusion.steps + 1, chunk):
            steps = torch.arange(start, min(start + chunk, diffusion.steps + 1))
            t = steps.repeat_interleave(per_step)
            x = x_0[torch.randint(len(x_0), (len(t),), generator=generator)]
            terms = step_kl(diffusion, network, x, t, diffusion.noise(x, generator))
            terms = terms.double().reshape(len(steps), per_step) / NATS
            kl[steps - 2] = terms.mean(1)
            if per_step > 1:
                variance += float(terms.var(1).sum()) / per_step
            progress(len(steps))
        first, last, prior, null = (float(x) / NATS for x in entropies(diffusion, x_0.double()))
    error = math.sqrt(variance) if per_step > 1 else math.nan
    return Bound(kl, error, first, last, prior, null, x_0[0].numel())


def entropy_bounds(diffusion: DiffusionKernels, x_0: Tensor, t: int) -> tuple[float, float]:
    """Bounds on the entropy of the true reverse step H_q(X_{t-1} | X_t), in bits per sample (equation 24).

        H_q(X_t|X_{t-1}) + H_q(X_{t-1}|X_0) - H_q(X_t|X_0) <= H_q(X_{t-1}|X_t) <= H_q(X_t|X_{t-1})

    The lower one is the entropy of the posterior q(x_{t-1} | x_t, x_0), averaged. The upper one needs diffusion not
    to lose entropy, H_q(X_t) >= H_q(X_{t-1}): true where the prior has the data's mean and variance, or for bits
    r = 0.5, and not where bits of another mean are driven to a biased r. Exact for Gaussians; for bits
    H_q(X_t | X_{t-1}) takes the mean over x_{t-1} given each x_0, where it is linear in x_{t-1}.

    Args:
        x_0: [M,*] data; t: 2 .. T.
    """
    steps = torch.full((len(x_0),), t)
    before = diffusion.cumulative(x_0, steps - 1)
    mean = before.mean
    if bool(((x_0 == 0) | (x_0 == 1)).all()):  # bits: the entropy at 0 and at 1, weighed
        zero = diffusion.forward(torch.zeros_like(x_0), steps).entropy()
        one = diffusion.forward(torch.ones_like(x_0), steps).entropy()
        forward = _total(mean * one + (1 - mean) * zero)
    else:
        forward = _total(diffusion.forward(mean, steps).entropy())
    lower = forward + _total(before.entropy()) - _total(diffusion.cumulative(x_0, steps).entropy())
    return float(lower) / NATS, float(forward) / NATS
