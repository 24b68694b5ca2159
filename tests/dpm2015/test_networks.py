"""Networks: shapes, the readouts, and what the bumps sum to."""

from __future__ import annotations

import pytest
import torch

from fastdiff.dpm2015 import (
    BinomialDiffusion,
    DiagonalGaussianDiffusion,
    MultiScaleConfig,
    MultiScaleNet,
    RBFNet,
    SequenceMLP,
    swiss_roll,
)
from fastdiff.dpm2015.multiscale import TemporalBumps
from fastdiff.dpm2015.networks import spread
from fastdiff.errors import FastdiffError

SMALL = MultiScaleConfig(channels=3, width=8, layers=2, scales=3, pointwise=8, size=8)


def test_temporal_bumps() -> None:
    g = TemporalBumps(1000, 10)(torch.arange(1, 1001))
    torch.testing.assert_close(g.sum(1), torch.ones(1000))
    assert g.argmax(1)[[0, -1]].tolist() == [0, 9]
    assert bool((g.argmax(1).diff() >= 0).all())


@pytest.mark.parametrize("dense", [0, 4])
def test_multi_scale_net_starts_as_the_kernel_for_white_noise(dense: int) -> None:
    diffusion = DiagonalGaussianDiffusion(50)
    network = MultiScaleNet(diffusion, MultiScaleConfig(**{**vars(SMALL), "dense": dense}))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([2, 50])
    x_0, z = network(x, t)
    assert x_0.shape == z.shape == x.shape
    torch.testing.assert_close(x_0, torch.sqrt(diffusion.alphas_bar[t]).float()[:, None, None, None] * x)
    assert not z.any()
    torch.nn.init.normal_(network.readout.weight)
    (network(x, t).x_0.square().sum() + network(x, t).z.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_multi_scale_net_takes_other_sizes_without_the_dense_pathway() -> None:
    network = MultiScaleNet(DiagonalGaussianDiffusion(50), SMALL)
    assert network(torch.randn(1, 3, 12, 20), torch.tensor([3])).z.shape == (1, 3, 12, 20)


@pytest.mark.parametrize(
    ("shape", "dense", "words"),
    [
        ((1, 3, 10, 12), 0, "multiples of 4, got \\[10, 12\\]"),
        ((1, 1, 8, 8), 0, "takes \\[N,3,H,W\\]"),
        ((1, 3, 12, 12), 4, "made for 8x8 images, got \\[12, 12\\]"),
    ],
)
def test_images_that_do_not_fit(shape: tuple[int, ...], dense: int, words: str) -> None:
    network = MultiScaleNet(
        DiagonalGaussianDiffusion(50), MultiScaleConfig(**{**vars(SMALL), "dense": dense})
    )
    with pytest.raises(FastdiffError, match=words):
        network(torch.zeros(shape), torch.tensor([2]))


def test_rbf_units_sum_to_one_and_fit_the_curve() -> None:
    points = swiss_roll(4000, seed=0)
    network = RBFNet(5, spread(points, 100), 0.1)
    torch.testing.assert_close(network.hidden(points[:50]).sum(1), torch.ones(50, dtype=torch.float64))
    diffusion = DiagonalGaussianDiffusion(betas=torch.full((5,), 1e-5))
    network.fit(diffusion, points, torch.Generator().manual_seed(0))
    found = network(points, torch.full((len(points),), 2)).x_0
    assert float((found - points).detach().square().mean().sqrt()) < 2e-3


def test_spread_takes_distant_points() -> None:
    line = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    assert sorted(spread(line, 3).flatten().tolist()) == [0.0, 0.5, 1.0]
    with pytest.raises(FastdiffError, match="cannot take 200 centres of 101 points"):
        spread(line, 200)


@pytest.mark.parametrize("per_step", [False, True])
def test_sequence_mlp(per_step: bool) -> None:
    diffusion = BinomialDiffusion(30, 0.2)
    network = SequenceMLP(diffusion, 20, per_step=per_step)
    x = torch.randint(2, (4, 20)).float()
    out = network(x, torch.tensor([2, 10, 29, 30]))
    assert out.shape == (4, 20) and bool(out.isfinite().all())
    same = network(x[:1].repeat(2, 1), torch.tensor([30, 30]))
    torch.testing.assert_close(same[0], same[1])
