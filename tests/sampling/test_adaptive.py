"""The sampler that chooses its steps while it runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_form import mixture_mean
from noisy_models import Model, make_batch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.sampling import Inpaint, Sampler

MIXTURE = [torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.0, 0.8], [0.25, 0.4])]
PROCESS = GaussianDiffusion(DiffusionConfig(prediction="x0"))


def exact(x, sigma):
    return mixture_mean(x, sigma[0], *MIXTURE)


def sampler(**options) -> Sampler:
    return Sampler(
        exact,
        (1,),
        **{
            "sampler": "sample_dpm_adaptive",
            "diffusion": PROCESS,
            "time": "sigma",
            "sigma_min": 0.02,
            "sigma_max": 80.0,
            "clip": False,
            **options,
        },
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {},
            [-1.216096485784186, 0.178059339282373, 0.629983799841831, 0.969457282945138, 1.327445354245147],
        ),
        (
            {"order": 2},
            [-1.236276367360359, 0.140046018899728, 0.637016923443043, 0.995203898754022, 1.459758037839132],
        ),
        (
            {"rtol": 0.01, "atol": 0.001},
            [-1.200689804565541, 0.179740182741486, 0.637446964555713, 0.963448270205337, 1.368281082570331],
        ),
    ],
)
def test_every_sample_is_k_diffusions(options, expected) -> None:
    """Its end at sigma 0.02, denoised, for one sample at a time, from y = 80 z.

    The lengths of steps depend on the difference of two nearly equal states, and so on its rounding.
    """
    z = torch.tensor([[-1.5], [-0.4], [0.1], [0.7], [1.6]], dtype=torch.float64)
    end = sampler(**options)(5, noise=z * 80 / math.hypot(1, 80), progress=False)[:, 0]
    denoised = exact(torch.tensor(expected, dtype=torch.float64), torch.tensor([0.02], dtype=torch.float64))
    torch.testing.assert_close(end, denoised, rtol=0, atol=1e-9)


def test_a_sample_is_the_same_in_any_batch_and_tolerances_set_the_error() -> None:
    z = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    fine = sampler(rtol=1e-5, atol=1e-6)
    whole, alone = (
        fine(7, noise=z, progress=False) for fine in (fine, sampler(rtol=1e-5, atol=1e-6, batch_size=1))
    )
    assert torch.equal(whole, alone)
    coarse = sampler()(7, noise=z, progress=False)
    finer = sampler(rtol=1e-6, atol=1e-7)(7, noise=z, progress=False)
    assert (whole - finer).abs().max() < 1e-3 < (coarse - finer).abs().max() < 0.2
    assert np.isfinite(coarse.numpy()).all()


def test_steps_and_levels_give_the_ends_alone() -> None:
    z = torch.tensor([[0.5]], dtype=torch.float64)
    many, one = (sampler(steps=steps)(1, noise=z, progress=False) for steps in (20, 1))
    assert torch.equal(many, one)
    given = {"sigmas": [80.0, 3.0, 0.02, 0.0], "sigma_min": None, "sigma_max": None}
    torch.testing.assert_close(sampler(**given)(1, noise=z, progress=False), one, rtol=0, atol=1e-9)
    pair = sampler(**{**given, "sigmas": [80.0, 0.0]})(1, noise=z, progress=False)
    torch.testing.assert_close(pair, exact(z * math.hypot(1, 80), torch.tensor([80.0])), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guided", [False, True])
def test_a_network_with_classes(guided: bool) -> None:
    _, options = make_batch(3)
    scale = 1.5 if guided else None
    made = Sampler(Model(), sampler="dpm_adaptive", guidance_scale=scale)(
        3, classes=options["cond"]["y"], seed=1, progress=False
    )
    assert made.shape == (3, 3, 8, 8) and made.abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": 1}, "the order of DPM adaptive must be a whole number from 2 to 3, got 1"),
        ({"atol": 0}, "atol must be above 0"),
        ({"rtol": -1}, "rtol must be a number of at least 0, got -1"),
        ({"eta": 0.5}, "sampler 'dpm_adaptive' has no eta"),
    ],
)
def test_errors(options, sentence) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        sampler(**options)


def test_conditions_are_refused() -> None:
    with pytest.raises(
        FastdiffError, match="chooses its steps while it runs, and a condition has to know them"
    ):
        Sampler(Model(), sampler="dpm_adaptive")(
            1, classes=1, condition=Inpaint(torch.zeros(3, 8, 8), torch.eye(8)), progress=False
        )
