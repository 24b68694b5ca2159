"""Binomial diffusion (Sohl-Dickstein et al. 2015): bits that are replaced step by step by random ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from fastdiff.diffusion.kernels import at, check_betas, check_values, fixed_betas
from fastdiff.errors import FastdiffError


class BinomialDiffusion:
    """q(x_t = 1 | x_{t-1}) = x_{t-1} (1 - beta_t) + r beta_t, for x in {0, 1}; the prior is Bernoulli(r).

    Table App.1 of the paper, which has r = 0.5; its section D.1.2 diffuses the heartbeat towards r = 0.2.
    Implements :class:`fastdiff.diffusion.kernels.DiffusionKernels`.

    Args:
        steps: T, with beta_t = 1 / (T - t + 1).
        rate: r, the prior's probability of a one.
        betas: [T] rates that replace the fixed schedule.

    Attributes:
        betas, alphas_bar: [T + 1] float64, indexed by t; entry 0 is the data (beta 0, abar 1).

    Raises:
        FastdiffError: fewer than two steps, r outside (0, 1), betas outside (0, 1].
    """

    def __init__(self, steps: int = 2000, rate: float = 0.5, *, betas: Tensor | None = None) -> None:
        if not 0 < rate < 1:
            raise FastdiffError(f"the prior's rate must lie between 0 and 1, got {rate}")
        if betas is None:
            betas = fixed_betas(steps)
        check_betas(betas)
        self.rate = float(rate)
        self.betas = torch.cat([betas.new_zeros(1), betas]).double()
        self.alphas_bar = torch.cumprod(1 - self.betas, 0)

    @property
    def steps(self) -> int:
        return len(self.betas) - 1

    def forward(self, x_prev: Tensor, t: Tensor) -> Bernoulli:
        """q(x_t | x_{t-1}); its own time reverse, so that forward(x_1, 1) is also the last step p(x_0 | x_1)."""
        return _bernoulli(self._towards_prior(x_prev, at(self.betas, t, x_prev)))

    def cumulative(self, x_0: Tensor, t: Tensor) -> Bernoulli:
        """q(x_t = 1 | x_0) = x_0 abar_t + r (1 - abar_t)."""
        return _bernoulli(self._towards_prior(x_0, 1 - at(self.alphas_bar, t, x_0)))

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Bernoulli:
        """q(x_{t-1} = 1 | x_t, x_0) = q_1 L_1 / (q_1 L_1 + (1 - q_1) L_0), by Bayes' rule.

        q_1 = q(x_{t-1} = 1 | x_0) and L_b = q(x_t | x_{t-1} = b).
        """
        q_1 = self._towards_prior(x_0, 1 - at(self.alphas_bar, t - 1, x_0))
        beta = at(self.betas, t, x_t)
        one = self._likelihood(torch.ones_like(x_t), x_t, beta)
        zero = self._likelihood(torch.zeros_like(x_t), x_t, beta)
        return _bernoulli(q_1 * one / (q_1 * one + (1 - q_1) * zero))

    def reverse(self, output: Tensor, x_t: Tensor, t: Tensor) -> Bernoulli:
        """p(x_{t-1} = 1 | x_t) = f P(1, x_t) + (1 - f) P(0, x_t), f = sigmoid(output).

        P(x_0, x_t) is the posterior, and f the network's probability that the bit of x_0 was one. The best
        factorised kernel has this form, because it is the mean of the posterior over x_0 given x_t; in the paper the
        network returns f_b directly, which is the same family of functions with the noise still to be learned.
        """
        f = torch.sigmoid(output)
        if_one = self.posterior(torch.ones_like(x_t), x_t, t).probs
        if_zero = self.posterior(torch.zeros_like(x_t), x_t, t).probs
        return _bernoulli(f * if_one + (1 - f) * if_zero)

    def prior(self, x: Tensor) -> Bernoulli:
        """Bernoulli(r)."""
        return _bernoulli(torch.full_like(x, self.rate))

    def noise(self, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = 1 where the noise is below q(x_t = 1 | x_0)."""
        return (noise < self.cumulative(x_0, t).probs).to(x_0.dtype)

    def evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log q(x_t | x_0 = 1) / q(x_t | x_0 = 0): the evidence of a bit of x_t about its bit of x_0, in nats."""
        rest = 1 - at(self.alphas_bar, t, x_t)
        one = self._likelihood(torch.ones_like(x_t), x_t, rest)
        return torch.log(one) - torch.log(self._likelihood(torch.zeros_like(x_t), x_t, rest))

    def check_data(self, x_0: Tensor) -> None:
        """Raise FastdiffError for data that are empty, not finite, or not 0 and 1."""
        check_values(x_0)
        wrong = x_0[(x_0 != 0) & (x_0 != 1)]
        if wrong.numel():
            raise FastdiffError(f"binomial diffusion takes bits, 0 or 1, got {float(wrong.flatten()[0]):g}")

    def _towards_prior(self, x: Tensor, share: Tensor) -> Tensor:
        return x * (1 - share) + self.rate * share

    def _likelihood(self, x: Tensor, x_t: Tensor, share: Tensor) -> Tensor:
        """Probability of the bit x_t after a share of x was replaced by random bits."""
        p = self._towards_prior(x, share)
        return x_t * p + (1 - x_t) * (1 - p)


def _bernoulli(probs: Tensor) -> Bernoulli:
    return Bernoulli(probs=probs, validate_args=False)
