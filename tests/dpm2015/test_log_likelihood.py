"""Equation 9's estimate of log p against what is known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.dpm2015 import (
    BinomialDiffusion,
    DiagonalGaussianDiffusion,
    GaussianOutput,
    HeartbeatOracle,
    bound,
    heartbeat_sequences,
    log_likelihood,
)
from fastdiff.errors import FastdiffError


def test_exact_kernels_have_the_exact_likelihood() -> None:
    """Unit Gaussian data: the reverse kernel is the forward one, and every trajectory gives log2 N(x; 0, 1)."""
    diffusion = DiagonalGaussianDiffusion(30)

    def network(x: torch.Tensor, t: torch.Tensor) -> GaussianOutput:
        abar, before = diffusion.alphas_bar[t][:, None], diffusion.alphas_bar[t - 1][:, None]
        beta = diffusion.betas[t][:, None]
        total = torch.logit(beta) - torch.logit(beta * (1 - before) / (1 - abar))
        return GaussianOutput(torch.sqrt(abar) * x, total.expand_as(x))

    x = torch.tensor([[0.3, -1.2], [2.0, 0.0]], dtype=torch.float64)
    exact = (-(x**2).sum(1) / 2 - math.log(2 * math.pi)) / math.log(2)
    for trajectories in (1, 3):
        found = log_likelihood(diffusion, network, x, trajectories=trajectories)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_heartbeats_lie_between_their_bound_and_the_truth() -> None:
    """K* at T = 50, r = 0.5 is -4.038 bits; the best kernels' log p is above it, and no model's above log2(1/5)."""
    diffusion = BinomialDiffusion(50, 0.5)
    oracle, x = HeartbeatOracle(diffusion), heartbeat_sequences()
    k = bound(diffusion, oracle, x, per_step=400).k
    assert k == pytest.approx(-4.038, abs=0.05)
    one = log_likelihood(diffusion, oracle, x.repeat(200, 1), trajectories=1)
    assert float(one.mean()) == pytest.approx(k, abs=4 * float(one.std()) / math.sqrt(1000) + 0.05)
    many = float(log_likelihood(diffusion, oracle, x, trajectories=2000).mean())
    assert k + 0.3 < many < math.log2(1 / 5)


def test_mistakes() -> None:
    diffusion = BinomialDiffusion(5)
    with pytest.raises(FastdiffError, match="trajectories must be a whole number of at least 1, got 0"):
        log_likelihood(diffusion, HeartbeatOracle(diffusion), heartbeat_sequences(), trajectories=0)
