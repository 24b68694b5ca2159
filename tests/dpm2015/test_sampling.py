"""Sampling with the best possible kernels, and with known elements."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdiff
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


def _exact(diffusion: DiagonalGaussianDiffusion) -> Any:
    """For unit Gaussian data: the estimate of x_0 is sqrt(abar) x_t, and the reverse kernel is the forward one."""

    def network(x: torch.Tensor, t: torch.Tensor) -> GaussianOutput:
        abar = diffusion.alphas_bar[t].float()[:, None]
        total = torch.logit(diffusion.betas[t]) - torch.logit(
            diffusion.betas[t] * (1 - diffusion.alphas_bar[t - 1]) / (1 - diffusion.alphas_bar[t])
        )
        return GaussianOutput(torch.sqrt(abar) * x, total.float()[:, None].expand_as(x))

    return network


def test_gaussian_samples_have_the_data_s_moments() -> None:
    diffusion = DiagonalGaussianDiffusion(100)
    made = sample(diffusion, _exact(diffusion), torch.zeros(20_000, 1), keep=(100, 40, 0))
    assert set(made) == {100, 40, 0}
    for x in made.values():
        assert float(x.mean()) == pytest.approx(0, abs=0.03) and float(x.var()) == pytest.approx(1, abs=0.05)


def test_a_guide_moves_the_mean_at_every_step() -> None:
    """log r = c x everywhere: m <- sqrt(1 - beta) m + beta c, from m = 0, over all steps but the last."""
    diffusion, c = DiagonalGaussianDiffusion(40), 0.7
    guide = fastdiff.Guide(lambda x, t: c * x.flatten(1).sum(1))
    made = sample(diffusion, _exact(diffusion), torch.zeros(20_000, 1), condition=guide)[0]
    mean = 0.0
    for step in range(40, 1, -1):
        beta = float(diffusion.betas[step])
        mean = (1 - beta) ** 0.5 * mean + beta * c
    mean *= (1 - float(diffusion.betas[1])) ** 0.5
    assert float(made.mean()) == pytest.approx(mean, abs=0.03) and mean > 0.3


def test_denoising_pulls_towards_the_observation() -> None:
    diffusion = DiagonalGaussianDiffusion(40)
    shape = torch.zeros(5000, 1)
    free = sample(diffusion, _exact(diffusion), shape)[0]
    blind = sample(
        diffusion, _exact(diffusion), shape, condition=fastdiff.Denoise(torch.tensor([[1.5]]), 1e4)
    )[0]
    torch.testing.assert_close(blind, free, rtol=1e-3, atol=1e-3)
    near = sample(
        diffusion, _exact(diffusion), shape, condition=fastdiff.Denoise(torch.tensor([[1.5]]), 0.1)
    )[0]
    assert float(near.mean()) == pytest.approx(1.5, abs=0.1) and float(near.std()) < 0.2


def test_a_factor_conditions_bits() -> None:
    """A first pulse that is known to be the third one, by factors alone."""
    diffusion = BinomialDiffusion(300, 0.2)
    factor = torch.full((1, 20), 0.5, dtype=torch.float64)
    factor[0, :5] = SEQUENCES[2][:5] * 0.98 + 0.01
    like = torch.zeros(100, 20, dtype=torch.float64)
    made = sample(diffusion, HeartbeatOracle(diffusion), like, factor=factor)[0]
    assert float((made == SEQUENCES[2]).all(1).double().mean()) > 0.5  # without the factor, 0.17


def _given_one_bit(steps: int, rate: float, **options: Any) -> tuple[float, float]:
    """Shares of the one heartbeat with a one in bin 2 among samples given that bit, and of heartbeats without it."""
    diffusion = BinomialDiffusion(steps, rate)
    oracle, like = HeartbeatOracle(diffusion), SEQUENCES[2].repeat(200, 1)
    mask = torch.zeros(200, 20, dtype=torch.bool)
    mask[:, 2] = True
    made = sample(diffusion, oracle, like, known=like, mask=mask, **options)[0]
    assert bool((made[:, 2] == 1).all())
    free = sample(diffusion, oracle, like)[0]
    share = (free[:, None] == SEQUENCES).all(2).any(1).double().mean()
    return float((made == SEQUENCES[2]).all(1).double().mean()), float(share)


def test_one_known_bit_barely_conditions_by_itself() -> None:
    """The exact answer is one heartbeat and no other; noised and held, the bit is seen too late."""
    found, exact = _given_one_bit(200, 0.2)
    assert exact > 0.9 and found < 0.45


def test_repeated_steps_condition_more() -> None:
    once, _ = _given_one_bit(100, 0.2)
    often, _ = _given_one_bit(100, 0.2, repeats=8)
    assert often > once + 0.08


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_particles_condition_as_they_should(rate: float) -> None:
    """0.95 of the exact answer, the share of samples that are heartbeats at all."""
    found, exact = _given_one_bit(200, rate, particles=16)
    assert found > 0.95 * exact


def test_particles_with_a_factor() -> None:
    """d = 0.8 on bin 2: the model has it with 1/5, so that given r it has it with 0.8 / (0.8 + 4 * 0.2) = 1/2."""
    diffusion = BinomialDiffusion(100, 0.2)
    factor = torch.full((1, 20), 0.5, dtype=torch.float64)
    factor[0, 2] = 0.8
    like = torch.zeros(600, 20, dtype=torch.float64)
    made = sample(diffusion, HeartbeatOracle(diffusion), like, factor=factor, particles=16)[0]
    assert float(made[:, 2].mean()) == pytest.approx(0.5, abs=0.07)


def test_samples_do_not_depend_on_the_batch() -> None:
    diffusion = BinomialDiffusion(50, 0.2)
    like = torch.zeros(6, 20, dtype=torch.float64)
    made = sample(diffusion, HeartbeatOracle(diffusion), like, seed=3)[0]
    assert torch.equal(sample(diffusion, HeartbeatOracle(diffusion), like[:2], seed=3)[0], made[:2])


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
    "condition-of-bits": ({"condition": fastdiff.Guide(lambda x, t: x.sum(1))}, "bits have no gradient"),
    "repeats": ({"repeats": 0}, "repeats must be a whole number of at least 1, got 0"),
    "particles-on-the-way": ({"particles": 2, "keep": (3, 0)}, "particles keep x_0 alone"),
    "keep": ({"keep": (6,)}, "must lie within 0 .. 5, got [6]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    options, words = MISTAKES[name]
    diffusion = BinomialDiffusion(5)
    with pytest.raises(FastdiffError) as error:
        sample(diffusion, HeartbeatOracle(diffusion), torch.zeros(2, 20), **options)
    assert words in str(error.value)
