"""Processes in continuous time: their coefficients as published, and what belongs together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff import DiffusionConfig, FastdiffError, GaussianDiffusion
from fastdiff.diffusion.config import Parametrisation
from fastdiff.diffusion.continuous import make_process

KINDS: list[Parametrisation] = ["edm", "consistency", "flow"]


def process(kind: Parametrisation, **options):
    return make_process(DiffusionConfig(parametrisation=kind, **options))


@pytest.mark.parametrize("kind", ["edm", "consistency"])
def test_coefficients_of_edm_and_consistency_models(kind) -> None:
    """c_in, c_skip, c_out and the time at sigma 0.002, 1.5 and 80, with sigma_data 0.5."""
    sigma = np.array([0.002, 1.5, 80.0])
    found = process(kind)
    levels = found.levels(sigma)
    c_in = 1 / np.sqrt(sigma**2 + 0.25)
    np.testing.assert_allclose(levels.signal, c_in, rtol=1e-14)
    np.testing.assert_allclose(levels.noise, sigma * c_in, rtol=1e-14)
    np.testing.assert_allclose(levels.times, [-1553.6520245, 101.3662770, 1095.5066587], rtol=1e-9)
    u, w = np.array([found.to_x0(s, n) for s, n in zip(levels.signal, levels.noise, strict=True)]).T
    above = sigma if kind == "edm" else sigma - 0.002
    np.testing.assert_allclose(u * c_in, 0.25 / (above**2 + 0.25), rtol=1e-13)  # c_skip
    np.testing.assert_allclose(w, above * 0.5 / np.sqrt(sigma**2 + 0.25), rtol=1e-13, atol=1e-17)  # c_out
    if kind == "consistency":
        assert (u[0] * c_in[0], w[0]) == pytest.approx((1.0, 0.0), abs=1e-15)  # D(x, sigma_min) = x


def test_coefficients_of_a_flow() -> None:
    found = process("flow")
    levels = found.levels(np.array([0.25, 3.0]))
    np.testing.assert_allclose(levels.signal, [0.8, 0.25], rtol=1e-15)
    np.testing.assert_allclose(levels.noise, [0.2, 0.75], rtol=1e-15)
    np.testing.assert_allclose(levels.times, [0.2, 0.75], rtol=1e-15)
    np.testing.assert_allclose(process("flow", rescale_timesteps=True).levels(np.array([3.0])).times, 750)
    assert found.to_x0(0.25, 0.75) == pytest.approx((1.0, -0.75))
    own = found.own_levels(4)
    np.testing.assert_allclose(own.times, 80 / 81 * np.array([1, 0.75, 0.5, 0.25]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_target_gives_x0_back(kind, dtype) -> None:
    """to_x0 at (q_sample, target) is x_0, as are the levels of training those of sampling."""
    found = process(kind)
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.0021, 0.03, 0.9, 20.0, 80.0], dtype=dtype)
    x0, z = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    x, target = found.q_sample(x0, sigma, z), found.target(x0, sigma, z)
    signal, noise, times = found.levels(sigma.double().numpy())
    expected = torch.from_numpy(signal)[:, None, None] * x0 + torch.from_numpy(noise)[:, None, None] * z
    tight, loose = (1e-12, 1e-9) if dtype == torch.float64 else (1e-5, 1e-3)
    torch.testing.assert_close(x, expected.to(dtype), rtol=tight, atol=tight)
    torch.testing.assert_close(
        found.model_time(sigma).double(), torch.from_numpy(times), rtol=tight, atol=tight
    )
    assert found.model_time(sigma).dtype == dtype
    u, w = torch.tensor([found.to_x0(s, n) for s, n in zip(signal, noise, strict=True)]).double().T
    torch.testing.assert_close(
        (u[:, None, None] * x + w[:, None, None] * target).to(dtype), x0, rtol=loose, atol=loose
    )
    torch.testing.assert_close(found.error_factor(sigma, x0).flatten().double(), w**2, rtol=2e-3, atol=0)


@pytest.mark.parametrize("kind", ["edm", "consistency"])
def test_own_grid_is_karras(kind) -> None:
    """sigma_i = (80^(1/7) + i/4 (0.002^(1/7) - 80^(1/7)))^7."""
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = process(kind).own_levels("5")
    expected = [(a + i / 4 * (b - a)) ** 7 for i in range(5)]
    np.testing.assert_allclose(levels.noise / levels.signal, expected, rtol=1e-12)
    assert process(kind).own_levels(1).noise / process(kind).own_levels(1).signal == pytest.approx(80)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parametrisation": "ddpm"}, "unknown diffusion parametrisation 'ddpm'; known: discrete, edm"),
        ({"parametrisation": "edm", "steps": 50}, "'edm' has no steps"),
        ({"parametrisation": "edm", "schedule": "cosine"}, "'edm' has no schedule"),
        ({"parametrisation": "flow", "prediction": "v"}, "'flow' has no prediction"),
        ({"parametrisation": "consistency", "variance": "learned_range"}, "'consistency' has no variance"),
        ({"parametrisation": "flow", "sigma_data": 1.0}, "'flow' has no sigma_data"),
        ({"sigma_data": 1.0}, "'discrete' has no sigma_data"),
        ({"parametrisation": "edm", "sigma_min": 80.0}, "sigma_min must be below sigma_max, got 80 and 80"),
        ({"parametrisation": "edm", "sigma_max": math.inf}, "sigma_max must be a positive number"),
        ({"parametrisation": "edm", "rho": 0}, "rho must be a positive number"),
        ({"parametrisation": "edm", "sigma_data": "large"}, "sigma_data must be a positive number"),
    ],
)
def test_what_does_not_apply_is_refused(options, words) -> None:
    with pytest.raises(FastdiffError, match=words):
        DiffusionConfig(**options)


def test_steps_of_a_process_without_steps() -> None:
    with pytest.raises(FastdiffError, match="trained in discrete steps"):
        process("edm").own_levels("ddim50")
    with pytest.raises(FastdiffError, match="'flow' has no discrete steps"):
        GaussianDiffusion(DiffusionConfig(parametrisation="flow"))
    with pytest.raises(FastdiffError, match="t must be sigmas"):
        process("edm").q_sample(torch.zeros(2, 3), torch.tensor([1, 2]), torch.zeros(2, 3))
    with pytest.raises(FastdiffError, match="leave out predicts"):
        process("edm").with_prediction("v")


def test_a_config_stores_what_it_has() -> None:
    assert DiffusionConfig().stored() == {
        "steps": 1000,
        "schedule": "linear",
        "prediction": "epsilon",
        "variance": "fixed_small",
        "rescale_timesteps": False,
    }
    for kind in KINDS:
        config = DiffusionConfig(parametrisation=kind, sigma_max=40, rho=5)
        assert DiffusionConfig(**config.stored()) == config
        assert isinstance(config.sigma_max, float)
