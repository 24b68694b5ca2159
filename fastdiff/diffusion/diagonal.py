"""Gaussian diffusion as in Sohl-Dickstein et al. 2015: a diagonal reverse kernel, a schedule that can be learned."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from fastdiff.diffusion.kernels import at, check_betas, check_values, fixed_betas


class GaussianOutput(NamedTuple):
    """A network's output at x_t [N,*]: its estimate of x_0, and z of the reverse variance; both [N,*]."""

    x_0: Tensor
    z: Tensor


class DiagonalGaussianDiffusion:
    """q(x_t | x_{t-1}) = N(x_{t-1} sqrt(1 - beta_t), beta_t I); the prior is N(0, I).

    Table App.1 of the paper. Implements :class:`fastdiff.diffusion.kernels.DiffusionKernels`. It stands beside
    :class:`fastdiff.GaussianDiffusion`, ADM's, whose x_T is never quite the prior and whose schedule is fixed.

    Args:
        steps: T, with beta_t = 1 / (T - t + 1).
        betas: [T] variances that replace the fixed schedule. They may require gradients: every kernel, and x_t for
            given noise, is then a differentiable function of the schedule (section 2.4.1).

    Attributes:
        betas, alphas_bar: [T + 1] float64, indexed by t; entry 0 is the data (beta 0, abar 1).

    Raises:
        FastdiffError: fewer than two steps, betas outside (0, 1].
    """

    def __init__(self, steps: int = 1000, *, betas: Tensor | None = None) -> None:
        if betas is None:
            betas = fixed_betas(steps)
        check_betas(betas)
        betas = betas.double()
        self.betas = torch.cat([betas.new_zeros(1), betas])
        self.alphas_bar = torch.cumprod(1 - self.betas, 0)
        before = torch.cat([self.alphas_bar.new_ones(1), self.alphas_bar[:-1]])
        left = torch.cat([betas.new_ones(1), 1 - self.alphas_bar[1:]])  # entry 0 is never used
        self._c_0 = torch.sqrt(before) * self.betas / left
        self._c_t = torch.sqrt(1 - self.betas) * (1 - before) / left
        self._variance = self.betas * (1 - before) / left

    @property
    def steps(self) -> int:
        return len(self.betas) - 1

    def forward(self, x_prev: Tensor, t: Tensor) -> Normal:
        """q(x_t | x_{t-1}); its own time reverse, so that forward(x_1, 1) is also the last step p(x_0 | x_1)."""
        beta = at(self.betas, t, x_prev)
        return _normal(x_prev * torch.sqrt(1 - beta), beta)

    def cumulative(self, x_0: Tensor, t: Tensor) -> Normal:
        """q(x_t | x_0) = N(sqrt(abar_t) x_0, 1 - abar_t)."""
        return _normal(at(torch.sqrt(self.alphas_bar), t, x_0) * x_0, at(1 - self.alphas_bar, t, x_0))

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Normal:
        """q(x_{t-1} | x_t, x_0) for t >= 2, as in :meth:`fastdiff.GaussianDiffusion.q_posterior`."""
        return _normal(self._mean(x_0, x_t, t), at(self._variance, t, x_t))

    def reverse(self, output: GaussianOutput, x_t: Tensor, t: Tensor) -> Normal:
        """p(x_{t-1} | x_t) for t >= 2: the posterior's mean at the network's x_0; variance sigmoid(z + logit(v_t)).

        v_t is the posterior's variance, beta_t (1 - abar_{t-1}) / (1 - abar_t), the least that an optimal kernel can
        have; the paper (eq. 61) starts from beta_t, the largest. Its mean, (x - z)(1 - S) + z, is likewise a mixture
        of x_t and an estimate; with the posterior's coefficients the estimate keeps the scale of x_0 at all t.
        """
        mean = self._mean(output.x_0, x_t, t)
        return _normal(mean, torch.sigmoid(output.z + at(torch.logit(self._variance), t, x_t)))

    def prior(self, x: Tensor) -> Normal:
        """N(0, 1)."""
        return _normal(torch.zeros_like(x), torch.ones_like(x))

    def noise(self, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal."""
        return torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)

    def diffuse(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
        q = self.cumulative(x_0, t)
        return q.mean + q.stddev * noise

    def check_data(self, x_0: Tensor) -> None:
        """Raises FastdiffError for data that are empty or not finite."""
        check_values(x_0)

    def _mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return at(self._c_0, t, x_t) * x_0 + at(self._c_t, t, x_t) * x_t


def _normal(mean: Tensor, variance: Tensor) -> Normal:
    return Normal(mean, torch.sqrt(variance).expand_as(mean), validate_args=False)
