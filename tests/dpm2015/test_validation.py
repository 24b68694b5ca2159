"""K on held-out data during training: unbiased however few steps are visited."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.dpm2015 import (
    BinomialDiffusion,
    DiagonalGaussianDiffusion,
    GaussianOutput,
    HeartbeatOracle,
    heartbeat_sequences,
    quick_k,
)


def test_the_mean_over_seeds_is_the_exact_likelihood() -> None:
    """Unit Gaussian data: with the exact reverse kernels K is the data's likelihood; 7 of 300 steps at a time."""
    diffusion = DiagonalGaussianDiffusion(300)

    def network(x: torch.Tensor, t: torch.Tensor) -> GaussianOutput:
        abar, before = diffusion.alphas_bar[t][:, None], diffusion.alphas_bar[t - 1][:, None]
        beta = diffusion.betas[t][:, None]
        total = torch.logit(beta) - torch.logit(beta * (1 - before) / (1 - abar))
        return GaussianOutput(torch.sqrt(abar) * x, total.expand_as(x))

    x = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    null = -float((x**2).sum(1).mean() / 2 + math.log(2 * math.pi)) / math.log(2)
    k = torch.tensor([quick_k(diffusion, network, x, samples=7, seed=seed)[0] for seed in range(400)])
    assert float(k.mean()) == pytest.approx(null, abs=4 * float(k.std()) / math.sqrt(400))


@pytest.mark.parametrize("early", [0.0, 0.7])
def test_the_mean_over_seeds_is_the_best_k(early: float) -> None:
    """16 of 200 steps at a time; K* = -2.850 +- 0.002 bits for T = 200, r = 0.5 (docs/dpm2015.md)."""
    diffusion = BinomialDiffusion(200, 0.5)
    oracle, x = HeartbeatOracle(diffusion), heartbeat_sequences()
    found = torch.tensor(
        [quick_k(diffusion, oracle, x, samples=16, early=early, seed=seed) for seed in range(400)]
    )
    k, error = found.T
    assert float(k.mean()) == pytest.approx(-2.850, abs=4 * float(k.std()) / math.sqrt(400))
    stated = float(error.square().mean().sqrt())
    assert 0.85 < float(k.std()) / stated < 1.1


def test_the_same_seed_draws_the_same_whatever_the_batch() -> None:
    diffusion = BinomialDiffusion(50)
    oracle, x = HeartbeatOracle(diffusion), heartbeat_sequences()
    k, error = quick_k(diffusion, oracle, x, samples=30, batch=30)
    again = quick_k(diffusion, oracle, x, samples=30, batch=7)
    assert again == pytest.approx((k, error), rel=1e-12)
    assert quick_k(diffusion, oracle, x, samples=30, seed=1)[0] != k
    assert math.isnan(quick_k(diffusion, oracle, x, samples=1)[1])
