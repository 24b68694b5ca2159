"""Samplers against answers known in closed form, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_form import MixtureModel, gaussian_model

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.sampling import Sampler
from fastdiff.sampling.levels import Levels, make_levels
from fastdiff.sampling.loop import run
from fastdiff.sampling.plan import make_plan
from fastdiff.sampling.samplers import SAMPLERS, Options, sampling_plan

X0_LINEAR = GaussianDiffusion(DiffusionConfig(prediction="x0"))


@pytest.mark.parametrize(
    ("steps", "expected"), [(10, 0.8293692), (50, 0.9635510), (250, 0.9925682), (1000, 0.9981243)]
)
def test_ddim_shrinks_a_gaussian_by_a_product_of_cosines(steps, expected) -> None:
    """sigma_out / sigma_exact = prod cos(theta_i - theta_{i+1}), tan theta = sqrt(1 - abar) / (c sqrt(abar)).

    Levels T, ..., 0 evenly, rounded, where 0 is the clean image and level k the process's step k - 1.
    """
    step = np.rint(np.linspace(1000, 0, steps + 1)).astype(int) - 1
    levels = Levels.preserving_variance(
        np.append(X0_LINEAR.alphas_bar.numpy(), 1.0)[step], np.maximum(step, 0.0)
    )
    plan = make_plan(SAMPLERS["ddim"].rows(levels, Options()), X0_LINEAR)
    x = torch.ones(1, 1, dtype=torch.float64)
    ratio = run(plan, gaussian_model(X0_LINEAR), x, clip=False).item()
    assert ratio == pytest.approx(expected, abs=6e-8)
    assert ratio == pytest.approx(np.prod(np.cos(np.diff(np.arctan(levels.sigmas)))), rel=1e-11)


def test_ddim_product_on_the_respaced_process() -> None:
    mean, std = 0.3, 0.5
    levels = make_levels(X0_LINEAR, 25)
    plan = sampling_plan(X0_LINEAR, sampler="ddim", steps=25)
    alpha_bar = levels.signal[0] ** 2
    v = alpha_bar * std**2 + 1 - alpha_bar
    x = math.sqrt(alpha_bar) * mean + math.sqrt(v) * torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    out = run(plan, gaussian_model(X0_LINEAR, mean, std), x, clip=False)[:, 0]
    theta = np.arctan(levels.sigmas / std)
    assert out[0].item() == pytest.approx(mean, rel=1e-11)
    assert (out[1] - out[0]).item() == pytest.approx(std * np.prod(np.cos(np.diff(theta))), rel=1e-11)


@pytest.mark.parametrize(
    ("sampler", "eta", "variance"),
    [
        ("ancestral", 0.0, "fixed_small"),
        ("ancestral", 0.0, "fixed_large"),
        ("ancestral", 0.0, "learned"),
        ("ancestral", 0.0, "learned_range"),
        ("ddim", 0.5, "fixed_small"),
        ("ddim", 1.0, "learned_range"),
    ],
)
def test_stochastic_samplers_follow_the_moment_recursion(sampler, eta, variance) -> None:
    """Mean and variance of the samples against the recursion on two numbers, for x_0 ~ N(0.2, 0.5^2)."""
    mean, std, steps, n = 0.2, 0.5, 20, 40_000
    diffusion = GaussianDiffusion(DiffusionConfig(prediction="x0", variance=variance))
    short, exact = diffusion.respaced(steps), gaussian_model(diffusion, mean, std)
    v = 0.4  # a constant output of the variance channels; "learned": the log-variance -3

    def model(x, t):
        channels = torch.full_like(x, -3.0 if variance == "learned" else v)
        return torch.cat([exact(x, t), channels], 1) if diffusion.config.learns_variance else exact(x, t)

    m, var = 0.0, 1.0  # of x_T
    for i in reversed(range(steps)):
        a, s = short.alphas_bar[i].item(), short.alphas_bar_prev[i].item()
        beta, small = short.betas[i].item(), short.posterior_variance[i].item()
        gain = math.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        offset = mean - gain * math.sqrt(a) * mean  # x0_hat = gain x + offset
        if sampler == "ddim":
            noise = eta**2 * small
            c_t = math.sqrt((1 - s - noise) / (1 - a))
            c_0 = math.sqrt(s) - c_t * math.sqrt(a)
        else:
            c_0, c_t = beta * math.sqrt(s) / (1 - a), (1 - s) * math.sqrt(1 - beta) / (1 - a)
            noise = {
                "fixed_small": small,
                "fixed_large": beta,
                "learned": math.exp(-3),
                "learned_range": beta ** ((v + 1) / 2) * small ** (1 - (v + 1) / 2),
            }[variance]
        m, var = (c_t + c_0 * gain) * m + c_0 * offset, (c_t + c_0 * gain) ** 2 * var + noise * (i > 0)
    sample = Sampler(model, (1,), sampler=sampler, steps=steps, eta=eta, diffusion=diffusion, clip=False)(
        n, seed=5, progress=False
    )
    assert sample.mean().item() == pytest.approx(m, abs=4 * math.sqrt(var / n))
    assert sample.var().item() == pytest.approx(var, rel=4 * math.sqrt(2 / n))
    assert abs(((sample - m) ** 3).mean().item()) < 4 * math.sqrt(15 / n) * var**1.5  # still Gaussian


MIXTURE = dict(weights=[0.3, 0.7], means=[-1.0, 0.8], stds=[0.25, 0.4])
SIGMA_MAX, SIGMA_MIN = 80.0, 0.02


def mixture_quantiles(sigma: float, probabilities: np.ndarray) -> np.ndarray:
    """Quantiles of the mixture at a noise level: the exact ODE conserves them."""
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    alpha_bar = 1 / (1 + sigma**2)
    means = math.sqrt(alpha_bar) * np.array(MIXTURE["means"])
    stds = np.sqrt(alpha_bar * np.array(MIXTURE["stds"]) ** 2 + 1 - alpha_bar)
    weights = np.array(MIXTURE["weights"])

    def excess(x: float, p: float) -> float:
        return float(weights @ stats.norm.cdf(x, means, stds)) - p

    return np.array([optimize.brentq(excess, -10, 10, args=(p,), xtol=1e-14) for p in probabilities])


@pytest.fixture(scope="module")
def exact_map() -> tuple[torch.Tensor, np.ndarray]:
    """States [K,1] at sigma 80 and where the exact probability-flow ODE takes them at sigma 0.02."""
    probabilities = np.linspace(0.05, 0.95, 19)
    start = torch.from_numpy(mixture_quantiles(SIGMA_MAX, probabilities))[:, None]
    return start, mixture_quantiles(SIGMA_MIN, probabilities)


def ode_error(sampler: str, spacing, steps: int, exact_map) -> float:
    start, end = exact_map
    levels = make_levels(X0_LINEAR, steps, spacing, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, to_clean=False)
    plan = make_plan(SAMPLERS[sampler].rows(levels, Options()), X0_LINEAR)
    out = run(plan, MixtureModel(X0_LINEAR, **MIXTURE), start, clip=False)[:, 0]
    return np.abs(out.numpy() - end).max()


@pytest.mark.parametrize(
    ("sampler", "spacing", "order"),
    [
        ("ddim", "logsnr", 1),
        ("euler", "karras", 1),
        ("heun", "logsnr", 2),
        ("heun", "karras", 2),
        ("dpmpp", "logsnr", 2),
        ("dpmpp", "karras", 2),
    ],
)
def test_order_of_convergence(sampler, spacing, order, exact_map) -> None:
    coarse, fine = (ode_error(sampler, spacing, steps, exact_map) for steps in (320, 640))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < (3e-2 if order == 1 else 1.5e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp"])
def test_default_grids_land_near_the_exact_solution(sampler) -> None:
    """All the way to the clean image with 25 steps, through the public interface, in float32."""
    probabilities = np.linspace(0.05, 0.95, 19)
    noise = torch.from_numpy(mixture_quantiles(SIGMA_MAX, probabilities)).float()[:, None]
    model = MixtureModel(X0_LINEAR, **MIXTURE)
    sampler_ = Sampler(model, (1,), sampler=sampler, steps=25, diffusion=X0_LINEAR, clip=False)
    error = sampler_(19, noise=noise, progress=False)[:, 0].numpy() - mixture_quantiles(0.0, probabilities)
    assert np.abs(error).max() < {"euler": 0.3, "heun": 0.05, "dpmpp": 0.05}[sampler]


def test_encode_then_decode() -> None:
    """The round trip is exact up to step error, which shrinks with first order."""
    x0 = torch.from_numpy(mixture_quantiles(0.0, np.linspace(0.1, 0.9, 9)))[:, None]
    model = MixtureModel(X0_LINEAR, **MIXTURE)
    errors = []
    for steps in (250, 500, 1000):
        sampler = Sampler(model, (1,), sampler="ddim", steps=steps, diffusion=X0_LINEAR, clip=False)
        noise = sampler.encode(x0, progress=False)
        errors.append((sampler(9, noise=noise, progress=False) - x0).abs().max().item())
    assert errors[-1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.3)
