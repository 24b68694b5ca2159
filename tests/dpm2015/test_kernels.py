"""The two diffusions' kernels: published values, Bayes' rule by enumeration, and mistakes in one sentence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.diffusion.kernels import fixed_betas
from fastdiff.dpm2015 import BinomialDiffusion, DiagonalGaussianDiffusion, GaussianOutput
from fastdiff.errors import FastdiffError


def _bit(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("x_0", "x_t", "expected"),
    [(0, 0, 0.0133928571), (0, 1, 0.6964285714), (1, 0, 0.3035714286), (1, 1, 0.9866071429)],
)
def test_binomial_posterior_values(x_0: int, x_t: int, expected: float) -> None:
    diffusion = BinomialDiffusion(10, 0.5)
    found = diffusion.posterior(_bit(x_0), _bit(x_t), torch.tensor([4])).probs
    assert float(found) == pytest.approx(expected, abs=5e-11)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_binomial_kernels_agree_with_enumerated_paths(rate: float) -> None:
    """Every path x_1 .. x_4 with its probability: marginals and posteriors are sums over paths."""
    diffusion, steps = BinomialDiffusion(4, rate), 4
    for x_0 in (0.0, 1.0):
        chance = {}
        for path in itertools.product((0.0, 1.0), repeat=steps):
            p, before = 1.0, x_0
            for t, bit in enumerate(path, 1):
                one = float(diffusion.forward(_bit(before), torch.tensor([t])).probs)
                p, before = p * (one if bit else 1 - one), bit
            chance[path] = p
        for t in range(1, steps + 1):
            one = sum(p for path, p in chance.items() if path[t - 1])
            assert float(diffusion.cumulative(_bit(x_0), torch.tensor([t])).probs) == pytest.approx(one)
        for t, x_t in itertools.product(range(2, steps + 1), (0.0, 1.0)):
            both = sum(p for path, p in chance.items() if path[t - 1] == x_t and path[t - 2])
            total = sum(p for path, p in chance.items() if path[t - 1] == x_t)
            found = diffusion.posterior(_bit(x_0), _bit(x_t), torch.tensor([t])).probs
            assert float(found) == pytest.approx(both / total)


def test_binomial_schedule_erases_an_equal_share_each_step() -> None:
    diffusion = BinomialDiffusion(10, 0.3)
    torch.testing.assert_close(diffusion.alphas_bar, (10 - torch.arange(11).double()) / 10)
    x_0 = torch.tensor([[0.0, 1.0]])
    assert diffusion.cumulative(x_0, torch.tensor([10])).probs.tolist() == [[pytest.approx(0.3)] * 2]


def test_binomial_reverse_is_the_posterior_of_a_certain_network() -> None:
    diffusion, t = BinomialDiffusion(20, 0.2), torch.tensor([7, 7])
    x_t = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for x_0, output in ((torch.zeros_like(x_t), -1e9), (torch.ones_like(x_t), 1e9)):
        found = diffusion.reverse(torch.full_like(x_t, output), x_t, t).probs
        torch.testing.assert_close(found, diffusion.posterior(x_0, x_t, t).probs)


def test_binomial_samples_have_the_kernel_s_frequency() -> None:
    diffusion = BinomialDiffusion(10, 0.2)
    x_0, t = torch.ones(40_000, 1), torch.full((40_000,), 6)
    x_t = diffusion.diffuse(x_0, t, diffusion.noise(x_0, torch.Generator().manual_seed(0)))
    assert set(x_t.unique().tolist()) == {0.0, 1.0}
    assert float(x_t.mean()) == pytest.approx(0.4 + 0.2 * 0.6, abs=0.01)


def test_gaussian_agrees_with_the_other_gaussian_diffusion() -> None:
    betas = np.linspace(0.01, 0.4, 12)
    here = DiagonalGaussianDiffusion(betas=torch.from_numpy(betas))
    there = fastdiff.GaussianDiffusion(betas=betas)
    x_0, x_t = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([2, 3, 5, 8, 12])
    ours, theirs = here.posterior(x_0, x_t, t), there.q_posterior(x_0, x_t, t - 1)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance.expand_as(x_t))
    marginal, expected = here.cumulative(x_0, t), there.q_mean_variance(x_0, t - 1)
    torch.testing.assert_close(marginal.mean, expected.mean)
    torch.testing.assert_close(marginal.variance, expected.variance.expand_as(x_t))


def test_gaussian_reverse_is_the_posterior_of_a_certain_network() -> None:
    diffusion, t = DiagonalGaussianDiffusion(30), torch.tensor([2, 15, 30])
    x_0, x_t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = diffusion.reverse(GaussianOutput(x_0, torch.zeros_like(x_0)), x_t, t)
    expected = diffusion.posterior(x_0, x_t, t)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)


MISTAKES = {
    "rate-1": (lambda: BinomialDiffusion(10, 1.0), "rate must lie between 0 and 1, got 1.0"),
    "rate-nan": (lambda: BinomialDiffusion(10, float("nan")), "rate must lie between 0 and 1, got nan"),
    "rate-negative": (lambda: BinomialDiffusion(10, -0.1), "rate must lie between 0 and 1, got -0.1"),
    "one-step": (lambda: BinomialDiffusion(1), "at least 2 steps, got 1"),
    "beta-above-1": (
        lambda: DiagonalGaussianDiffusion(betas=torch.tensor([0.1, 1.1])),
        "above 0 and at most 1",
    ),
    "beta-0": (lambda: BinomialDiffusion(betas=torch.tensor([0.0, 0.5])), "above 0 and at most 1"),
    "beta-nan": (lambda: BinomialDiffusion(betas=torch.tensor([float("nan"), 0.5])), "above 0 and at most 1"),
    "not-bits": (
        lambda: BinomialDiffusion(5).check_data(torch.tensor([[0.5]])),
        "takes bits, 0 or 1, got 0.5",
    ),
    "nan": (lambda: DiagonalGaussianDiffusion(5).check_data(torch.tensor([[float("nan")]])), "hold NaN"),
    "empty": (lambda: BinomialDiffusion(5).check_data(torch.zeros(0, 3)), "at least one sample, got [0, 3]"),
    "whole-numbers": (
        lambda: BinomialDiffusion(5).check_data(torch.ones(2, 3).int()),
        "must be floating point",
    ),
    "step-6": (
        lambda: BinomialDiffusion(5).forward(torch.ones(1, 2), torch.tensor([6])),
        "must lie within 1 .. 5, got 6",
    ),
    "steps-per-sample": (
        lambda: DiagonalGaussianDiffusion(5).forward(torch.ones(2, 2), torch.tensor([1])),
        "one per sample, [2]",
    ),
    "too-few": (lambda: fixed_betas(0), "at least 2 steps, got 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    call, words = MISTAKES[name]
    with pytest.raises(FastdiffError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
