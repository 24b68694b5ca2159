"""Conditional sampling against closed forms: the data are Gaussians, so every posterior has a formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_form import PairModel
from torch import Tensor

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.sampling import Denoise, Guide, Inpaint, Sampler

DIFFUSION = GaussianDiffusion(DiffusionConfig(schedule="cosine", prediction="x0"))
MEAN, STD = 0.2, 0.5  # of the data
OBSERVED, NOISE_STD = 0.8, 0.3
N, PIXELS = 20, 1000  # 20 000 independent pixels
LOG_SIGMAS = 0.5 * np.log(1 / DIFFUSION.alphas_bar.numpy() - 1)
POSTERIOR_VARIANCE = 1 / (1 / STD**2 + 1 / NOISE_STD**2)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (MEAN / STD**2 + OBSERVED / NOISE_STD**2)


def level(t: Tensor) -> float:
    """abar at the (perhaps fractional) time that all samples share."""
    return float(1 / (1 + np.exp(2 * np.interp(float(t[0]), np.arange(len(LOG_SIGMAS)), LOG_SIGMAS))))


def model(x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t], as ``gaussian_model`` gives it, but quickly."""
    a = level(t)
    return MEAN + math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a) * (x - math.sqrt(a) * MEAN)


def chain(steps: int):
    """abar before and after, c_0, c_t and variance of each reverse step of the fixed_small chain."""
    short = DIFFUSION.respaced(steps)
    for i in reversed(range(steps)):
        a, s, beta = (float(t[i]) for t in (short.alphas_bar, short.alphas_bar_prev, short.betas))
        c_0, c_t = beta * math.sqrt(s) / (1 - a), (1 - s) * math.sqrt(1 - beta) / (1 - a)
        yield a, s, c_0, c_t, float(short.posterior_variance[i])


def denoising_recursion(steps: int, schedule: str) -> tuple[float, float]:
    """Mean and variance of what the conditioned chain gives: each step is N(gain x + offset, variance)."""
    m, v = 0.0, 1.0
    for k, (a, s, c_0, c_t, variance) in enumerate(chain(steps)):
        slope = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        gain, offset = c_t + c_0 * slope, c_0 * (MEAN - slope * math.sqrt(a) * MEAN)
        precision = (1.0 if schedule == "constant" else (k + 1) / steps) / NOISE_STD**2
        if s < 1:
            after = 1 / (1 / variance + precision)
            gain, offset = after / variance * gain, after * (offset / variance + precision * OBSERVED)
            variance = after
        m, v = gain * m + offset, gain**2 * v + variance
    return m, v


def draw(condition, **options) -> Tensor:
    options = {"sampler": "ancestral", "steps": 20, "diffusion": DIFFUSION, "clip": False} | options
    return Sampler(model, (PIXELS,), **options)(N, seed=3, condition=condition, progress=False).double()


def assert_moments(sample: Tensor, mean: float, variance: float, *, off: float = 0.0) -> None:
    """Within four standard errors, and a bias of ``off`` standard deviations (or that share of the variance)."""
    n = sample.numel()
    assert sample.mean().item() == pytest.approx(mean, abs=math.sqrt(variance) * (off + 4 / math.sqrt(n)))
    assert sample.var().item() == pytest.approx(variance, rel=off + 4 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", ["constant", "annealed"])
@pytest.mark.parametrize("sampler", [{"sampler": "ancestral"}, {"sampler": "ddim", "eta": 1.0}], ids=str)
def test_denoising_follows_its_recursion(schedule, sampler) -> None:
    observed = torch.full((PIXELS,), OBSERVED)
    sample = draw(Denoise(observed, NOISE_STD, schedule), **sampler)
    assert_moments(sample, *denoising_recursion(20, schedule))


def test_bias_of_denoising() -> None:
    """r_0 at every step: the mean is right to a few percent, the variance about half of the posterior's."""
    for schedule, share in (("constant", 0.52), ("annealed", 0.58)):
        mean, variance = denoising_recursion(100, schedule)
        assert abs(mean - POSTERIOR_MEAN) < 0.03
        assert variance / POSTERIOR_VARIANCE == pytest.approx(share, abs=0.01)


def log_h(x: Tensor, t: Tensor) -> Tensor:
    """log E[r(x_0) | x_t], the r_t that makes conditioning exact: log N(y; E[x_0|x_t], Var[x_0|x_t] + sigma_n^2)."""
    a = level(t)
    variance = STD**2 * (1 - a) / (a * STD**2 + 1 - a) + NOISE_STD**2
    return -((OBSERVED - model(x, t)) ** 2).sum(1) / (2 * variance)


@pytest.mark.parametrize(
    ("sampler", "off"),
    [
        ({"sampler": "ancestral", "steps": 100}, 0.05),
        ({"sampler": "ddim", "eta": 1.0, "steps": 100}, 0.05),
        ({"sampler": "ddim", "eta": 0.5, "steps": 100}, 0.05),
        ({"sampler": "ddim", "steps": 100}, 0.05),
        ({"sampler": "heun", "steps": 25, "spacing": "logsnr"}, 0.05),
        ({"sampler": "dpmpp", "steps": 40, "spacing": "logsnr"}, 0.05),
    ],
    ids=str,
)
def test_guiding_by_the_exact_r_gives_the_posterior(sampler, off) -> None:
    """Every sampler, to its step error: with gradients at the mean, or added to the score."""
    assert_moments(draw(Guide(log_h), **sampler), POSTERIOR_MEAN, POSTERIOR_VARIANCE, off=off)


def test_guiding_by_a_gaussian_is_denoising() -> None:
    """In the limit of short steps: Sigma grad log r(mu) is the first order of the product's shift."""

    def log_r(x: Tensor, t: Tensor) -> Tensor:
        return -((x - OBSERVED) ** 2).sum(1) / (2 * NOISE_STD**2)

    assert_moments(draw(Guide(log_r), steps=200), *denoising_recursion(200, "constant"), off=0.12)


def test_scale_of_a_guide_multiplies_log_r() -> None:
    half = Guide(lambda x, t: 0.5 * log_h(x, t), scale=2.0)
    torch.testing.assert_close(draw(half), draw(Guide(log_h)), rtol=1e-4, atol=1e-5)


def inpainting_recursion(steps: int, rho: float, known: float, repeats: int = 1) -> tuple[float, float]:
    """Mean and variance of the unknown channel, the known one being drawn anew before each step."""
    model = PairModel(DIFFUSION, rho)
    m, v = 0.0, 1.0
    for a, s, c_0, c_t, variance in chain(steps):
        to_unknown = c_0 * model.gain(a)[1].numpy()
        gain = c_t + to_unknown[1]
        for repeat in range(repeats):
            if repeat:
                m, v = math.sqrt(a / s) * m, a / s * v + 1 - a / s
            m = gain * m + to_unknown[0] * math.sqrt(a) * known
            v = gain**2 * v + to_unknown[0] ** 2 * (1 - a) + (variance if s < 1 else 0)
    return m, v


def inpainted(rho: float, known: float, repeats: int = 1, **options) -> Tensor:
    """[N,K], the channel that was filled in beside a known one."""
    image, mask = torch.full((2, PIXELS), known), torch.zeros(N, 2, PIXELS)
    image[1], mask[:, 1] = math.nan, 1
    sampler = Sampler(
        PairModel(DIFFUSION, rho),
        (2, PIXELS),
        **{"steps": 50, "diffusion": DIFFUSION, "clip": False} | options,
    )
    out = sampler(N, seed=4, condition=Inpaint(image, mask, repeats), progress=False)
    assert (out[:, 0] == known).all()
    return out[:, 1].double()


@pytest.mark.parametrize(("rho", "repeats"), [(0.5, 1), (0.95, 1), (0.8, 5)])
def test_inpainting_follows_its_recursion(rho, repeats) -> None:
    sample = inpainted(rho, 1.5, repeats, sampler="ancestral")
    assert_moments(sample, *inpainting_recursion(50, rho, 1.5, repeats))


def test_bias_of_inpainting() -> None:
    """One pixel of a pair: the other gets the right sign, but only 53 to 76 percent of the conditional mean."""
    for rho, share in ((0.5, 0.53), (0.8, 0.62), (0.95, 0.76)):
        mean, variance = inpainting_recursion(250, rho, 1.0)
        assert mean / rho == pytest.approx(share, abs=0.01)
        assert 1 - rho**2 < variance < 1


def test_repeats_take_most_of_the_bias_away() -> None:
    """This holds for the mean. The variance is that of the steps, and too small with fixed_small and few steps."""
    for steps, repeats, mean, variance in (
        (50, 5, 0.728, 0.315),
        (50, 20, 0.782, 0.256),
        (250, 5, 0.733, 0.366),
    ):
        assert inpainting_recursion(steps, 0.8, 1.0, repeats) == pytest.approx((mean, variance), abs=0.001)


def test_inpainting_without_noise_in_the_steps_keeps_one_noise_for_the_known() -> None:
    """The whole run is linear in x_T and in that one noise, so that its mean follows a recursion of its own."""
    out = inpainted(0.8, 1.5, sampler="ddim")
    short = DIFFUSION.respaced(50)
    model, m = PairModel(DIFFUSION, 0.8), 0.0
    for i in reversed(range(50)):
        a, s = float(short.alphas_bar[i]), float(short.alphas_bar_prev[i])
        x = math.sqrt((1 - s) / (1 - a))
        to_unknown = (math.sqrt(s) - x * math.sqrt(a)) * model.gain(a)[1].numpy()
        m = x * m + to_unknown @ np.array([math.sqrt(a) * 1.5, m])
    assert out.mean().item() == pytest.approx(m, abs=4 * out.std().item() / math.sqrt(out.numel()))
