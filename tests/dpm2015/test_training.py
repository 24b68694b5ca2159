"""Trained models against the paper's numbers, with recipes short enough for a test; the commands train longer."""

from __future__ import annotations

import pytest
import torch

from fastdiff.dpm2015 import DiagonalGaussianDiffusion, LearnedSchedule, MultiScaleConfig, Recipe, dead_leaves
from fastdiff.dpm2015.bound import entropies, step_kl
from fastdiff.dpm2015.experiments import PAPER, gaussian_bits, heartbeat, images, swiss_roll
from fastdiff.dpm2015.networks import RBFNet
from fastdiff.dpm2015.training import step_weights, stratified
from fastdiff.errors import FastdiffError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_heartbeat_stays_below_the_best_and_above_minus_2_6() -> None:
    trained = heartbeat(Recipe(1000, 400, 1e-2, early=0.7), per_step=40)
    best = -2.3686  # K* of T = 2000, r = 0.2: no factorised kernel is better
    assert -2.6 < trained.bound.k < best + 3 * trained.bound.error
    assert trained.bound.gain == pytest.approx(trained.bound.k + 14.4386, abs=1e-3)


def test_swiss_roll_reaches_the_paper_s_bits() -> None:
    trained = swiss_roll(Recipe(400, 400, 1e-3), per_step=1000)
    assert trained.bound.k - trained.bound.error > PAPER["swiss-roll"][0]
    assert float(trained.diffusion.betas[1]) == pytest.approx(1e-6)
    start = DiagonalGaussianDiffusion(betas=LearnedSchedule(40, 1e-6)().detach())
    assert float((trained.diffusion.betas[2:] / start.betas[2:]).log().abs().max()) > 0.02  # it was learned


def test_dead_leaves_gain_on_the_prior() -> None:
    """The paper's figure takes the command's training time; these are its first seconds, on little images."""
    train_set, test_set = dead_leaves(300, size=16, seed=1), dead_leaves(60, size=16, seed=2)
    config = MultiScaleConfig(width=16, layers=2, scales=2, pointwise=32)
    trained = images(
        train_set, test_set, Recipe(250, 8, 5e-3, ema=0.95, early=0.7), config, steps=100, crop=16, per_step=8
    )
    assert trained.bound.gain / trained.bound.dimensions > 0.2  # bits a pixel


def test_gaussian_yardstick_of_white_noise() -> None:
    x = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert gaussian_bits(x, x) == pytest.approx(-2.047, abs=0.05)


def test_gradient_of_the_schedule_with_frozen_noise() -> None:
    """d(-K)/d(beta) by backpropagation through x_t against differences, in float64."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(90, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(90, 2, dtype=torch.float64, generator=generator)
    t = torch.arange(2, 11).repeat(10)
    network = RBFNet(10, x_0[:8])

    def minus_k(betas: torch.Tensor) -> torch.Tensor:
        diffusion = DiagonalGaussianDiffusion(betas=betas)
        first, last, prior, _ = entropies(diffusion, x_0)
        return 9 * step_kl(diffusion, network, x_0, t, noise).mean() + first - last + prior

    betas = torch.linspace(0.02, 0.5, 10, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(minus_k(betas), betas)
    for i in (1, 5, 9):
        step = torch.zeros(10, dtype=torch.float64)
        step[i] = 1e-6
        with torch.no_grad():
            difference = (minus_k(betas + step) - minus_k(betas - step)) / 2e-6
        assert float(gradient[i]) == pytest.approx(float(difference), rel=1e-5, abs=1e-7)


def test_learned_schedule_starts_geometrically() -> None:
    schedule = LearnedSchedule(30, 1e-4)
    diffusion = DiagonalGaussianDiffusion(betas=schedule().detach())
    noise = 1 - diffusion.alphas_bar[1:]
    assert float(noise[0]) == pytest.approx(1e-4) and float(noise[-1]) == pytest.approx(0.999)
    assert [name for name, p in schedule.named_parameters() if p.requires_grad] == ["logits"]


def test_stratified_steps_visit_each_once() -> None:
    weights = step_weights(50, 0.0)
    assert stratified(weights, 49, torch.Generator().manual_seed(0)).tolist() == list(range(2, 51))
    early = step_weights(50, 0.9)
    assert float(early.sum()) == pytest.approx(1) and float(early[2]) > 5 * float(early[50])


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"early": 1.0}, {"ema": 1.0}],
)
def test_bad_recipes(wrong: dict[str, float]) -> None:
    with pytest.raises(FastdiffError, match="must be"):
        Recipe(**{"iterations": 1, "batch": 1, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "beta"), [(1, 0.1), (10, 0.0), (10, 1.0)])
def test_bad_schedules(steps: int, beta: float) -> None:
    with pytest.raises(FastdiffError, match="at least 2 steps and a first beta in"):
        LearnedSchedule(steps, beta)
