"""Sampling with the best possible kernels, and with known elements."""

from __future__ import annotations

import pytest
import torch

from fastdiff.dpm2015 import (
    BinomialDiffusion,
    DiagonalGaussianDiffusion,
    GaussianOutput,
    HeartbeatOracle,
    heartbeat_sequences,
    sample,
)
from fastdiff.errors import FastdiffError

SEQUENCES = heartbeat_sequences()


def test_the_oracle_s_samples_are_heartbeats_of_all_phases() -> None:
    diffusion = BinomialDiffusion(300, 0.2)
    made = sample(
        diffusion, HeartbeatOracle(diffusion), torch.zeros(200, 20, dtype=torch.float64), keep=(1, 0)
    )
    found = (made[0][:, None] == SEQUENCES).all(2)
    assert float(found.any(1).double().mean()) > 0.85  # the last step, which is not learned, flips some bits
    assert int(found.sum(0).min()) > 15


def test_known_bits_select_the_phase() -> None:
    diffusion = BinomialDiffusion(300, 0.2)
    known = SEQUENCES[3].repeat(50, 1)
    mask = torch.zeros(50, 20, dtype=torch.bool)
    mask[:, :10] = True
    made = sample(diffusion, HeartbeatOracle(diffusion), known, known=known, mask=mask)[0]
    assert torch.equal(made[:, :10], known[:, :10])
    assert float((made == known).all(1).double().mean()) > 0.8


def test_gaussian_samples_have_the_data_s_moments() -> None:
    """Unit Gaussian data: the exact estimate of x_0 is sqrt(abar) x_t."""
    diffusion = DiagonalGaussianDiffusion(100)

    def network(x: torch.Tensor, t: torch.Tensor) -> GaussianOutput:
        abar = diffusion.alphas_bar[t].float()[:, None]
        total = torch.logit(diffusion.betas[t]) - torch.logit(
            diffusion.betas[t] * (1 - diffusion.alphas_bar[t - 1]) / (1 - diffusion.alphas_bar[t])
        )
        return GaussianOutput(torch.sqrt(abar) * x, total.float()[:, None].expand_as(x))

    made = sample(diffusion, network, torch.zeros(20_000, 1), keep=(100, 40, 0))
    assert set(made) == {100, 40, 0}
    for x in made.values():
        assert float(x.mean()) == pytest.approx(0, abs=0.03) and float(x.var()) == pytest.approx(1, abs=0.05)


MISTAKES = {
    "mask-size": (
        {"known": torch.zeros(2, 20), "mask": torch.ones(2, 10, dtype=torch.bool)},
        "the mask must be [2, 20], as the samples, got [2, 10]",
    ),
    "known-size": (
        {"known": torch.zeros(1, 20), "mask": torch.ones(2, 20, dtype=torch.bool)},
        "known values must be [2, 20], as the samples, got [1, 20]",
    ),
    "no-mask": ({"known": torch.zeros(2, 20)}, "known values need a mask"),
    "keep": ({"keep": (6,)}, "must lie within 0 .. 5, got [6]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    options, words = MISTAKES[name]
    diffusion = BinomialDiffusion(5)
    with pytest.raises(FastdiffError) as error:
        sample(diffusion, HeartbeatOracle(diffusion), torch.zeros(2, 20), **options)
    assert words in str(error.value)
