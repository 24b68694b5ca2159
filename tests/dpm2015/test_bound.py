"""The bound K: exact where it can be known, K* of the heartbeat, entropies of the true reverse step."""

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
    entropy_bounds,
    heartbeat_sequences,
    step_kl,
)
from fastdiff.dpm2015.bound import NATS, entropies
from fastdiff.errors import FastdiffError


def _exact_network(diffusion: DiagonalGaussianDiffusion, variance: float = 1.0):
    """The true reverse kernel of Gaussian data; for variance 1 it is the forward kernel."""

    def network(x: torch.Tensor, t: torch.Tensor) -> GaussianOutput:
        abar, before, beta = (a[t][:, None] for a in _tables(diffusion))
        total = variance * abar + 1 - abar
        x_0 = variance * torch.sqrt(abar) / total * x
        posterior = beta * (1 - before) / (1 - abar)
        c_0 = torch.sqrt(before) * beta / (1 - abar)
        true = posterior + c_0**2 * variance * (1 - abar) / total
        return GaussianOutput(x_0, (torch.logit(true) - torch.logit(posterior)).expand_as(x))

    return network


def _tables(diffusion: DiagonalGaussianDiffusion):
    abar = diffusion.alphas_bar
    return abar, torch.cat([abar[:1], abar[:-1]]), diffusion.betas


@pytest.mark.parametrize("betas", [None, torch.linspace(0.001, 0.3, 50)])
def test_unit_gaussian_data_and_forward_kernels_gain_nothing(betas: torch.Tensor | None) -> None:
    """K - L_null = 0. The divergence is quadratic in x_0 and the noise: signs in place of normals are exact."""
    diffusion = DiagonalGaussianDiffusion(50, betas=betas)
    x_0 = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    noise = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    network = _exact_network(diffusion)
    steps = range(2, diffusion.steps + 1)
    t = [torch.full((4,), step) for step in steps]
    kl = sum(float(step_kl(diffusion, network, x_0, s, noise).mean()) for s in t)
    first, last, prior, null = (float(x) for x in entropies(diffusion, x_0))
    assert prior == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=1e-14)
    assert first == pytest.approx(0.5 * math.log(2 * math.pi * math.e * float(diffusion.betas[1])), abs=1e-14)
    assert abs((-kl + last - first - prior - null) / NATS) < 1e-12
    x, s = torch.randn(4, 1, dtype=torch.float64), torch.tensor([2, 5, 20, 49])
    reverse, forward = diffusion.reverse(network(x, s), x, s), diffusion.forward(x, s)
    torch.testing.assert_close(reverse.mean, forward.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(reverse.variance, forward.variance, rtol=1e-12, atol=0)


def test_other_variance_is_bounded_by_the_true_likelihood() -> None:
    """Gaussian data of variance 1/4 with their exact reverse kernels: K reaches E log q(x_0) up to x_1 and x_T."""
    diffusion = DiagonalGaussianDiffusion(60)
    x_0 = 0.5 * torch.randn(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = bound(diffusion, _exact_network(diffusion, 0.25), x_0, per_step=4000, batch=100_000)
    true = -0.5 * math.log2(2 * math.pi * math.e * 0.25)
    assert found.k < true + 4 * found.error
    assert found.k == pytest.approx(true, abs=0.03 + 4 * found.error)


@pytest.mark.parametrize(
    ("steps", "rate", "best", "divergence", "first"),
    [
        (2000, 0.2, -2.3686, 2.3246, 0.0439),
        (2000, 0.5, -2.3906, 2.3235, 0.0670),
        (200, 0.5, -2.850, 2.345, 0.504),
        (50, 0.5, -4.038, 2.422, 1.616),
    ],
)
def test_oracle_heartbeat(steps: int, rate: float, best: float, divergence: float, first: float) -> None:
    diffusion = BinomialDiffusion(steps, rate)
    samples = 30 if steps == 2000 else 500
    found = bound(diffusion, HeartbeatOracle(diffusion), heartbeat_sequences(), per_step=samples)
    assert found.error < 0.04
    assert found.k == pytest.approx(best, abs=3 * found.error + 0.002)
    assert float(found.step_kl.sum()) == pytest.approx(divergence, abs=3 * found.error + 0.002)
    assert found.first_entropy == pytest.approx(first, abs=1e-3)
    assert found.k < math.log2(1 / 5)
    assert found.gain == pytest.approx(found.k - found.null)


def test_null_of_the_heartbeat() -> None:
    diffusion = BinomialDiffusion(2000, 0.2)
    null = float(entropies(diffusion, heartbeat_sequences())[3]) / NATS
    assert null == pytest.approx(-14.4386, abs=1e-4)


@pytest.mark.parametrize(("rate", "mean"), [(0.5, 0.5), (0.5, 0.9), (0.2, 0.2)])
def test_entropy_bounds_of_bits_hold_the_true_entropy(rate: float, mean: float) -> None:
    """One bit with q(x_0 = 1) = mean: H(X_{t-1} | X_t) from the 2 x 2 table."""
    diffusion, ones = BinomialDiffusion(20, rate), round(10 * mean)
    x_0 = torch.cat([torch.ones(ones, 1), torch.zeros(10 - ones, 1)]).double()
    for t in (2, 7, 20):
        steps = torch.full((2,), t)
        p = mean * float(diffusion.alphas_bar[t - 1]) + rate * (1 - float(diffusion.alphas_bar[t - 1]))
        likelihood = diffusion.forward(torch.tensor([[0.0], [1.0]]).double(), steps).probs[:, 0]
        joint = torch.tensor([1 - p, p], dtype=torch.float64)[:, None] * torch.stack(
            [1 - likelihood, likelihood], 1
        )
        true = float(-(joint * torch.log2(joint / joint.sum(0))).sum())
        lower, upper = entropy_bounds(diffusion, x_0, t)
        assert lower - 1e-12 <= true <= upper + 1e-12


def test_entropy_bounds_of_unit_gaussians_are_tight_above() -> None:
    diffusion = DiagonalGaussianDiffusion(20)
    x_0 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    lower, upper = entropy_bounds(diffusion, x_0, 5)
    beta = float(diffusion.betas[5])
    assert upper == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * beta))
    variance = beta * float((1 - diffusion.alphas_bar[4]) / (1 - diffusion.alphas_bar[5]))
    assert lower == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * variance)) and lower < upper


def test_bad_data() -> None:
    diffusion = BinomialDiffusion(5)
    with pytest.raises(FastdiffError, match="0 or 1, got 2"):
        bound(diffusion, HeartbeatOracle(diffusion), torch.full((1, 20), 2.0))
