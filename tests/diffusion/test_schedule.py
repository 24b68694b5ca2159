from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.diffusion.schedule import betas, karras_sigmas, space_timesteps
from fastdiff.errors import FastdiffError

# abar by timestep, T = 1000.
ALPHAS_BAR = {
    "linear": {
        0: 0.9999,
        249: 0.52408537,
        499: 0.078587243,
        749: 0.0033505504,
        998: 4.1181936e-5,
        999: 4.0358298e-5,
    },
    "cosine": {
        0: 0.99995872,
        249: 0.84701216,
        499: 0.49384359,
        749: 0.1442721,
        998: 2.4287669e-6,
        999: 2.4287669e-9,
    },
}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_alphas_bar(schedule) -> None:
    table = GaussianDiffusion(DiffusionConfig(schedule=schedule)).alphas_bar
    for t, expected in ALPHAS_BAR[schedule].items():
        assert table[t].item() == pytest.approx(expected, rel=2e-7 if schedule == "linear" else 2e-8)


def test_linear_as_sigmas() -> None:
    alphas_bar = GaussianDiffusion().alphas_bar.numpy()
    sigmas = np.sqrt((1 - alphas_bar) / alphas_bar)
    assert sigmas[0] == pytest.approx(0.0100005, rel=1e-7)
    assert sigmas[-1] == pytest.approx(157.407, abs=5e-4)


def test_published_ends_of_schedules() -> None:
    """Stable Diffusion's and GeoDiff's first and last beta."""
    scaled, sigmoid = betas("scaled_linear", 1000), betas("sigmoid", 1000)
    assert scaled[[0, -1]] == pytest.approx([0.00085, 0.012])
    assert np.sqrt(scaled[500]) == pytest.approx(0.00085**0.5 + 500 / 999 * (0.012**0.5 - 0.00085**0.5))
    low, high = 1 / (1 + np.exp(6)), 1 / (1 + np.exp(-6))
    assert sigmoid[[0, -1]] == pytest.approx([1e-4 + 0.0199 * low, 1e-4 + 0.0199 * high])


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "sigmoid", "cosine"])
def test_final_noise_hardly_depends_on_the_number_of_steps(schedule) -> None:
    long = GaussianDiffusion(DiffusionConfig(1000, schedule)).alphas_bar[500]
    short = GaussianDiffusion(DiffusionConfig(250, schedule)).alphas_bar[125]
    assert short.item() == pytest.approx(long.item(), rel=0.05)


def test_karras_sigmas() -> None:
    expected = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.400935, 5.315195, 3.256822]
    expected += [1.92334, 1.088171, 0.585348, 0.296442, 0.139516, 0.059947, 0.022935, 0.007528, 0.002]
    assert karras_sigmas(18) == pytest.approx(expected, abs=5e-7, rel=1e-7)


def accumulated(count: int, steps: int) -> list[int]:
    """One section by the letter: a running float sum of the stride, each partial sum rounded half to even."""
    stride = (steps - 1) / (count - 1)
    sums = np.concatenate([[0.0], np.cumsum(np.full(count - 1, stride))])
    return np.rint(sums).astype(int).tolist()


def test_spacing_accumulates_like_adm() -> None:
    """The running sum agrees with linspace for the usual counts and not for 278 of all."""
    different = set()
    for count in range(2, 1001):
        taken = space_timesteps(count, 1000)
        assert taken == accumulated(count, 1000)
        assert len(set(taken)) == count
        if taken != np.rint(np.linspace(0, 999, count)).astype(int).tolist():
            different.add(count)
    assert len(different) == 278
    assert not different & {10, 25, 50, 100, 250, 500}


def test_spacing_in_sections() -> None:
    taken = space_timesteps("90,60,60,20,20", 1000)
    assert taken == sorted(taken)
    assert len(taken) == 250
    for section, count in enumerate([90, 60, 60, 20, 20]):
        inside = [t - 200 * section for t in taken if 200 * section <= t < 200 * (section + 1)]
        exact = [Fraction(199, count - 1) * i for i in range(count)]
        assert (len(inside), inside[0], inside[-1]) == (count, 0, 199)
        assert all(abs(t - e) <= Fraction(1, 2) for t, e in zip(inside, exact, strict=True))


@pytest.mark.parametrize(
    ("spec", "steps", "expected"),
    [
        ("ddim50", 1000, list(range(0, 1000, 20))),
        ("ddim250", 1000, list(range(0, 1000, 4))),
        ("ddim3", 10, [0, 4, 8]),
        (1, 1000, [0]),
        ("4", 10, [0, 3, 6, 9]),
        ("2,1", 5, [0, 2, 3]),  # the first section takes the remainder
        (1000, 1000, list(range(1000))),
    ],
)
def test_spacing(spec, steps, expected) -> None:
    assert space_timesteps(spec, steps) == expected


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (0, "whole number of at least 1.* got 0"),
        (1001, "cannot take 1001 of 1000 timesteps"),
        ("10,0", "got '10,0'"),
        ("fast", "got 'fast'"),
        ("", "got ''"),
        (-5, "got -5"),
        (2.5, "got 2.5"),
        ("ddim", "got 'ddim'"),
        ("ddim300", "no whole stride visits exactly 300 of 1000"),
        ("501,499", "cannot take 501 of 500 in section 1"),
    ],
)
def test_spacing_errors(spec, sentence) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        space_timesteps(spec, 1000)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 10.0}, "got 10.0"),
        ({"schedule": "quadratic"}, "unknown diffusion schedule 'quadratic'; known: linear, cosine"),
        ({"prediction": "noise"}, "unknown diffusion prediction 'noise'; known: epsilon, x0, v"),
        ({"variance": "big"}, "unknown diffusion variance 'big'; known: fixed_small"),
    ],
)
def test_config_errors(arguments, sentence) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        DiffusionConfig(**arguments)


def test_schedule_errors() -> None:
    with pytest.raises(FastdiffError, match="needs more than 20 steps"):
        betas("linear", 20)
    with pytest.raises(FastdiffError, match="unknown diffusion schedule 'x'"):
        betas("x", 20)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FastdiffError, match="between 0 and 1"):
        GaussianDiffusion(betas=[0.1, 1.0])
