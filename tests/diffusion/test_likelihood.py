"""Bits per dimension. For Gaussian data every term is an expectation of a quadratic, which four points give
exactly: x_0 in {m - c, m + c} and noise in {-1, 1} have the first and second moments of the real ones."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.likelihood import (
    bits_per_dim,
    discretized_gaussian_log_likelihood,
    normal_kl,
    prior_bits,
)


def exact_bits(std: float, variance: str) -> float:
    """Bits per dimension of N(0, std^2) under its exact denoiser and some reverse variance."""
    diffusion = GaussianDiffusion(DiffusionConfig(prediction="x0", variance="learned"))
    alpha_bar, previous, beta = diffusion.alphas_bar, diffusion.alphas_bar_prev, diffusion.betas
    v_t, v_s = alpha_bar * std**2 + 1 - alpha_bar, previous * std**2 + 1 - previous
    small = diffusion.posterior_variance.clone()
    small[0] = beta[0]
    reverse = {"exact": beta * v_s / v_t, "beta": beta, "small": small}[variance]

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x0 = (alpha_bar.sqrt() * std**2 / v_t)[t][:, None] * x
        return torch.cat([x0, reverse.log()[t][:, None]], 1)

    x0 = std * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    noise = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    result = bits_per_dim(diffusion, model, x0, clip=False, discrete=False, noise=lambda t: noise)
    return result.total.mean().item()


@pytest.mark.parametrize(
    ("std", "variance", "expected"),
    [
        (0.5, "exact", 1.0470956),
        (0.5, "beta", 1.0486714),
        (0.5, "small", 1.7054672),
        (1.0, "beta", 2.0470956),
    ],
)
def test_gaussian_data(std, variance, expected) -> None:
    assert exact_bits(std, variance) == pytest.approx(expected, abs=6e-8)


def test_exact_variance_reaches_the_entropy() -> None:
    """With the exact reverse variance the bound is the entropy plus the prior's divergence."""
    std = 0.5
    last = GaussianDiffusion().alphas_bar[-1].item()
    v = last * std**2 + 1 - last
    prior = 0.5 * (v - 1 - math.log(v)) / math.log(2)
    assert exact_bits(std, "exact") == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * std**2) + prior)


def test_normal_kl_against_torch() -> None:
    mean1, mean2, log1, log2 = torch.randn(4, 100, generator=torch.Generator().manual_seed(1)).double()
    p, q = (torch.distributions.Normal(m, (s / 2).exp()) for m, s in ((mean1, log1), (mean2, log2)))
    torch.testing.assert_close(normal_kl(mean1, log1, mean2, log2), torch.distributions.kl_divergence(p, q))


def test_discretized_likelihood_is_a_distribution_over_256_levels() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    levels = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1
    for mean, log_variance in ((0.3, -2.0), (-0.98, -6.0), (1.2, -4.0)):
        parameters = torch.tensor(mean).double(), torch.tensor(log_variance).double()
        probability = discretized_gaussian_log_likelihood(levels, *parameters).exp()
        assert probability.sum().item() == pytest.approx(1, abs=1e-9)
        edges = (levels[1:] + levels[:-1]) / 2
        cdf = [0.0, *stats.norm(mean, math.exp(log_variance / 2)).cdf(edges.numpy()), 1.0]
        exact = torch.tensor(cdf).double().diff()
        assert (probability - exact).abs().max() < 2e-3  # the tanh approximation of the distribution function


def test_terms_add_up_and_have_the_shape_of_the_chain() -> None:
    diffusion = GaussianDiffusion().respaced(7)
    x0 = torch.arange(24).reshape(2, 3, 2, 2) * 2 / 255 - 1
    torch.manual_seed(0)
    result = bits_per_dim(diffusion, lambda x, t: torch.zeros_like(x), x0)
    assert result.vb.shape == result.x0_mse.shape == result.epsilon_mse.shape == (2, 7)
    torch.testing.assert_close(result.total, result.prior + result.vb.sum(1))
    torch.testing.assert_close(result.prior, prior_bits(diffusion, x0))
    assert (result.vb > 0).all()
