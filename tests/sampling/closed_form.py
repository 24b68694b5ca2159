"""Denoisers whose answers are known exactly: the data are Gaussians, so every expectation has a formula.

For x_0 ~ N(m, c^2) and x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise, V = abar c^2 + 1 - abar and

    E[x_0 | x_t] = m + sqrt(abar) c^2 / V (x_t - sqrt(abar) m).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusion.gaussian import GaussianDiffusion


def mixture_mean(y: Tensor, sigma: Tensor, weights: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """E[x_0 | y] of a mixture of one-dimensional Gaussians, for y = x_0 + sigma z of any shape; sigma broadcasts."""
    y, sigma = y.double()[..., None], sigma.double()[..., None]  # the last dimension counts components
    variance, residual = stds**2 + sigma**2, y - means
    log_share = weights.log() - 0.5 * variance.log() - residual**2 / (2 * variance)
    return (torch.softmax(log_share, dim=-1) * (means + stds**2 / variance * residual)).sum(-1)


class MixtureModel:
    """The exact x_0-predicting denoiser of a mixture of one-dimensional Gaussians, at any fractional time.

    Fractional times are inverted with the documented rule: log sigma is linear between timesteps.
    """

    def __init__(self, diffusion: GaussianDiffusion, weights: list, means: list, stds: list) -> None:
        self.log_sigmas = 0.5 * np.log(1 / diffusion.alphas_bar.numpy() - 1)
        self.weights, self.means, self.stds = (
            torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds)
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = np.exp(np.interp(t.double().numpy(), np.arange(len(self.log_sigmas)), self.log_sigmas))
        sigma = torch.from_numpy(sigma).reshape(-1, *[1] * (x.ndim - 1))  # [N,1,...,1]
        y = x.double() * torch.sqrt(1 + sigma**2)
        return mixture_mean(y, sigma, self.weights, self.means, self.stds).to(x.dtype)


def gaussian_model(diffusion: GaussianDiffusion, mean: float = 0.0, std: float = 1.0) -> MixtureModel:
    """The exact x_0-predicting denoiser of N(mean, std^2)."""
    return MixtureModel(diffusion, [1.0], [mean], [std])


class PairModel:
    """The exact x_0-predicting denoiser of N(0, [[1, rho], [rho, 1]]): the two channels of x [N,2,K]."""

    def __init__(self, diffusion: GaussianDiffusion, rho: float) -> None:
        self.alphas_bar = diffusion.alphas_bar
        self.covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)

    def gain(self, alpha_bar: float) -> Tensor:
        """[2,2]: E[x_0 | x_t] = gain x_t."""
        return (
            alpha_bar**0.5
            * self.covariance
            @ torch.linalg.inv(alpha_bar * self.covariance + (1 - alpha_bar) * torch.eye(2))
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("ij,njk->nik", self.gain(float(self.alphas_bar[int(t[0])])).to(x.dtype), x)
