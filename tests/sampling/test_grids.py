"""Grids of noise levels: values of k-diffusion, scipy and diffusers, and what no grid may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.choices import canonical_sampler
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.sampling import Sampler
from fastdiff.sampling.grids import sigma_grid, time_grid, zero_terminal_signal
from fastdiff.sampling.levels import levels_of, make_levels
from fastdiff.sampling.samplers import SAMPLERS, sampling_plan

V = GaussianDiffusion(DiffusionConfig(prediction="v"))
EDM = make_process(DiffusionConfig(parametrisation="edm"))


@pytest.mark.parametrize(
    ("spacing", "rho", "expected"),
    [
        ("karras", 5.0, [10.0, 3.263898650413, 0.769457299442, 0.1]),
        ("exponential", None, [10.0, 2.15443469, 0.464158883, 0.1]),
        ("logsnr", None, [10.0, 2.15443469, 0.464158883, 0.1]),
        ("polyexponential", 2.0, [10.0, 0.774263682681, 0.16681005372, 0.1]),
        ("polyexponential", None, [10.0, 2.15443469, 0.464158883, 0.1]),
        ("vp", None, [152.166970283946, 9.403196554555, 1.461971827812, 0.010485992787]),
    ],
)
def test_grids_by_sigma_are_k_diffusions(spacing, rho, expected) -> None:
    assert sigma_grid(spacing, 4, 0.1, 10.0, rho) == pytest.approx(expected, rel=1e-8)


def test_the_consistency_grid_has_no_point_at_its_end() -> None:
    assert sigma_grid("consistency", 2, 0.002, 80.0) == pytest.approx(
        sigma_grid("karras", 3, 0.002, 80.0)[:2]
    )
    assert make_levels(EDM, 1, "consistency").sigmas.tolist() == pytest.approx([80, 0])


def test_grids_by_timesteps() -> None:
    assert time_grid("trailing", 7, 1000).tolist() == [999, 856, 713, 570, 428, 285, 142]
    assert time_grid("simple", 3, 1000).tolist() == [999, 666, 333]
    assert time_grid("beta", 5, 1000) / 999 == pytest.approx(
        [1, 0.87707825, 0.637299009, 0.362700991, 0.12292175], abs=1e-6
    )
    for spacing in ("simple", "trailing", "beta"):
        for steps in (1, 20, 250, 1000):
            levels = make_levels(V, steps, spacing)
            assert (np.diff(levels.sigmas) < 0).all() and levels.steps == steps
            assert levels.times[0] == 999
    assert make_levels(V, 1000, "trailing").times.tolist() == [*range(999, -1, -1), 0]


def test_zero_terminal_levels() -> None:
    """The process's own first level, none of the signal in the last, and the model's times between."""
    signal = zero_terminal_signal(np.sqrt(V.alphas_bar.numpy()))
    assert signal[[0, 1, 500, 998]] ** 2 == pytest.approx(
        [0.99989998, 0.99977934, 0.0752462, 4.21327e-9], rel=1e-5
    )
    assert signal[999] == 2.0**-16
    levels = make_levels(V, 10, "zero-terminal-snr")
    assert levels.times.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 99]
    middle = levels.at(np.sqrt(levels.sigmas[1:2] * levels.sigmas[2:3]))
    assert 799 < middle.times[0] < 899
    for sampler in SAMPLERS:
        if sampler != "consistency":
            plan = sampling_plan(V, sampler=sampler, steps=10, spacing="zero-terminal-snr")
            assert torch.isfinite(plan.table).all()


def test_own_sigmas_replace_steps_and_spacing() -> None:
    sigmas = [30.0, 5.0, 1.0, 0.1, 0.0]
    for given in (sigmas, np.array(sigmas), torch.tensor(sigmas, dtype=torch.float64)):
        assert levels_of(V, given).sigmas == pytest.approx(sigmas)
    plan = sampling_plan(V, sampler="dpmpp_2m", steps=20, sigmas=sigmas)
    assert plan.calls == 4
    images = Sampler(lambda x, t: 0 * x, (3, 4, 4), sampler="heun", sigmas=sigmas, diffusion=V)
    assert images.calls == 7


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sigmas": [3.0]}, "at least two numbers"),
        ({"sigmas": [[3.0, 0.0]]}, r"got shape \[1, 2\]"),
        ({"sigmas": ["a", "b"]}, "must be numbers that descend to 0"),
        ({"sigmas": [3.0, float("nan"), 0.0]}, "must be finite"),
        ({"sigmas": [3.0, 1.0]}, "must end with 0, the clean image, got 1"),
        ({"sigmas": [3.0, 3.0, 0.0]}, "must not repeat, but 3 does"),
        ({"sigmas": [1.0, 3.0, 0.0]}, "must descend, but 3 comes after 1"),
        ({"sigmas": [3.0, 0.0], "spacing": "karras"}, "leave out spacing"),
        ({"sigmas": [3.0, 0.0], "rho": 3}, "leave out rho"),
        ({"sigma_min": 2.0, "sigma_max": 2.0}, "sigma_min must be below sigma_max, got 2 and 2"),
        ({"sigma_min": -1.0}, "sigma_min must be a positive number, got -1"),
        ({"sigma_max": float("inf")}, "sigma_max must be a positive number, got inf"),
        ({"rho": 0}, "rho must be a positive number, got 0"),
        ({"rho": 3, "spacing": "exponential"}, "has no rho; karras, consistency, polyexponential have"),
        ({"sigma_max": 3, "spacing": "vp"}, "spacing 'vp' has ends of its own; leave out sigma_max"),
        ({"sigma_max": 3, "spacing": "uniform"}, "spacing 'uniform' has ends of its own"),
    ],
)
def test_errors(options, sentence) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        sampling_plan(V, **{"sampler": "dpmpp", "steps": 10, **options})


def test_grids_that_need_another_model() -> None:
    with pytest.raises(FastdiffError, match="needs a model that predicts x0 or v"):
        make_levels(GaussianDiffusion(), 10, "zero-terminal-snr")
    with pytest.raises(
        FastdiffError, match="picks timesteps, and a model of kind 'edm' has none; use 'karras'"
    ):
        make_levels(EDM, 10, "trailing")
    assert sampling_plan(EDM, sampler="lcm", steps=4).calls == 4  # its own grid in place of trailing


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sample_dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("dpmpp_2m", "dpmpp"),
        ("sample_dpmpp_2m", "dpmpp"),
        ("euler_a", "euler_ancestral"),
        ("uni_pc", "unipc_bh1"),
        ("DPM-2", "dpm_2"),
        ("plms", "pndm"),
        ("ddpm", "ancestral"),
        ("tea", "tea"),
    ],
)
def test_other_projects_names(given: str, expected: str) -> None:
    assert canonical_sampler(given) == expected
    if expected in SAMPLERS:
        named, own = (sampling_plan(V, sampler=name, steps=5) for name in (given, expected))
        assert torch.equal(named.table, own.table)
