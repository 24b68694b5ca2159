"""Levels and rows, without running a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.ops.reverse_step import COLUMNS
from fastdiff.sampling.levels import Levels, make_levels
from fastdiff.sampling.loop import run
from fastdiff.sampling.plan import History, make_plan
from fastdiff.sampling.samplers import SAMPLERS, Options, encoding_plan, sampling_plan


def column(plan, name: str) -> torch.Tensor:
    return plan.table[:, COLUMNS.index(name)]


def test_uniform_levels_are_the_respaced_process() -> None:
    diffusion = GaussianDiffusion()
    levels = make_levels(diffusion, "ddim50")
    assert levels.steps == 50
    assert levels.times[:-1].tolist() == list(range(980, -1, -20))
    assert (levels.signal[-1], levels.noise[-1]) == (1, 0)
    np.testing.assert_allclose(levels.signal[:-1] ** 2, diffusion.alphas_bar[::20].flip(0), rtol=1e-12)
    np.testing.assert_allclose(levels.noise[:-1] ** 2, 1 - diffusion.alphas_bar[::20].flip(0), rtol=1e-12)


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_levels_at_other_sigmas_are_of_the_same_process(spacing) -> None:
    levels = make_levels(GaussianDiffusion(), 10, spacing)
    again = levels.at(levels.sigmas[:-1])
    for name in ("signal", "noise", "times"):
        np.testing.assert_allclose(getattr(again, name), getattr(levels, name)[:-1], rtol=1e-9, atol=1e-9)
    between = again.at(np.sqrt(levels.sigmas[:-2] * levels.sigmas[1:-1]))
    assert ((levels.times[1:-1] < between.times) & (between.times < levels.times[:-2])).all()


@pytest.mark.parametrize("spacing", ["karras", "logsnr"])
@pytest.mark.parametrize("rescale", [False, True])
def test_fractional_times_interpolate_log_sigma(spacing, rescale) -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(steps=500, rescale_timesteps=rescale))
    levels = make_levels(diffusion, 20, spacing)
    table = np.sqrt(1 / diffusion.alphas_bar.numpy() - 1)
    times = levels.times[:-1] / (2 if rescale else 1)
    np.testing.assert_allclose(
        np.exp(np.interp(times, np.arange(500), np.log(table))), levels.sigmas[:-1], rtol=1e-10
    )
    assert levels.sigmas[[0, -2, -1]] == pytest.approx([80, table[0], 0])


def test_a_respaced_process_has_its_own_times_between() -> None:
    """Fractional positions of a shortened process map to the original model's timesteps."""
    diffusion = GaussianDiffusion()
    levels = make_levels(diffusion.respaced("ddim500"), 10, "karras")
    direct = make_levels(diffusion, 10, "karras")
    np.testing.assert_allclose(levels.times, direct.times, atol=1)


def test_levels_up_are_the_noisy_ones_reversed() -> None:
    down = make_levels(GaussianDiffusion(), 10)
    up = down.up()
    assert up.steps == 9
    assert up.noise.tolist() == down.noise[:-1][::-1].tolist()
    assert up.times.tolist() == down.times[:-1][::-1].tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_rows_recover_x0(prediction) -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(prediction=prediction))
    plan = sampling_plan(diffusion, sampler="ddim", steps=1000)
    x0, noise = torch.tensor([[0.3], [-0.7]]).double(), torch.tensor([[1.1], [0.4]]).double()
    for row in (0, 500, 999):
        t = torch.full((2,), 999 - row)
        x_t, output = diffusion.q_sample(x0, t, noise), diffusion.target(x0, t, noise)
        recovered = column(plan, "out_x")[row] * x_t + column(plan, "out_m")[row] * output
        torch.testing.assert_close(recovered, x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("spec", [1, 7, 1000])
def test_ancestral_rows_are_the_process_tables(variance, spec) -> None:
    diffusion = GaussianDiffusion(DiffusionConfig(variance=variance))
    plan, short = sampling_plan(diffusion, sampler="ancestral", steps=spec), diffusion.respaced(spec)
    x, t = torch.ones(short.steps, 1).double(), torch.arange(short.steps)
    posterior = short.q_posterior(x, 0 * x, t)

    def by_step(name):
        return column(plan, name).flip(0)

    close = dict(rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_step("x0"), posterior.mean[:, 0], **close)
    torch.testing.assert_close(by_step("x"), short.q_posterior(0 * x, x, t).mean[:, 0], **close)
    noisy = (t > 0).double()
    if variance.startswith("fixed"):
        std = (short.posterior_variance if variance == "fixed_small" else short.betas).sqrt()
        torch.testing.assert_close(by_step("std"), std * noisy, **close)
        learned = [column(plan, name) for name in ("log_min", "log_max", "noise_on")]
        assert plan.variance == "none" and not any(c.any() for c in learned)
    else:
        torch.testing.assert_close(by_step("log_min"), short.posterior_log_variance_clipped, **close)
        torch.testing.assert_close(by_step("log_max"), short.betas.log(), **close)
        assert by_step("noise_on").tolist() == noisy.tolist()
        assert plan.variance == (variance if spec > 1 else "none")
    assert plan.is_stochastic == (spec > 1)
    assert torch.isfinite(plan.table).all()


def test_ddim_with_eta_one_has_the_ancestral_variance() -> None:
    diffusion = GaussianDiffusion()
    ddim = sampling_plan(diffusion, sampler="ddim", steps=50, eta=1.0).table
    ancestral = sampling_plan(diffusion, sampler="ancestral", steps=50).table
    torch.testing.assert_close(ddim, ancestral, rtol=1e-9, atol=1e-12)


def test_euler_is_ddim_on_the_same_levels() -> None:
    diffusion = GaussianDiffusion()
    for spacing in ("uniform", "karras", "logsnr"):
        euler = sampling_plan(diffusion, sampler="euler", steps=20, spacing=spacing)
        ddim = sampling_plan(diffusion, sampler="ddim", steps=20, spacing=spacing)
        torch.testing.assert_close(euler.table, ddim.table, rtol=1e-8, atol=1e-12)


def test_calls_and_history() -> None:
    diffusion = GaussianDiffusion()
    x0, x, none = History.PREVIOUS_X0, History.PREVIOUS_X, History.NONE

    def first(sampler: str, steps: int) -> list[History]:
        return [row.h1 for row in sampling_plan(diffusion, sampler=sampler, steps=steps).launches]

    assert first("heun", 3) == [none, x, none, x, none]
    assert first("dpmpp", 4) == [none, x0, x0, none]
    levels = Levels.preserving_variance(np.geomspace(1e-3, 0.9, 5), np.arange(5.0))
    few = [row.history for row in SAMPLERS["dpmpp"].rows(levels, Options())]
    assert few == [none, x0, x0, none]  # fewer than 15 steps finish with first order
    levels = Levels.preserving_variance(np.geomspace(1e-3, 0.9, 17), np.arange(17.0))
    many = [row.history for row in SAMPLERS["dpmpp"].rows(levels, Options())]
    assert many == [none] + [x0] * 15


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rows_are_consistent(sampler, schedule) -> None:
    """If the model already knows x_0 exactly and x_t = signal x_0, every row keeps x on that line."""
    diffusion = GaussianDiffusion(DiffusionConfig(schedule=schedule, prediction="x0"))
    for steps in (1, 2, 5, 25):
        levels = make_levels(diffusion, steps, SAMPLERS[sampler].spacing)
        rows = SAMPLERS[sampler].rows(levels, Options(**SAMPLERS[sampler].takes))
        seen = []

        def model(x, t, seen=seen):
            seen.append(x.item())
            return torch.ones_like(x)

        x = torch.full((1, 1), levels.signal[0], dtype=torch.float64)
        end = run(make_plan(rows, diffusion), model, x, clip=False)
        assert seen == pytest.approx([row.signal for row in rows], abs=1e-9)
        assert end.item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"sampler": "dpmp"},
            r"unknown sampler 'dpmp' \(did you mean dpmpp, .*\); known: ancestral, ddim, euler",
        ),
        ({"sampler": "tea"}, "unknown sampler 'tea'; known: ancestral, ddim, euler"),
        ({"sampler": "consistency"}, "is for consistency models, and this is a diffusion model"),
        ({"spacing": "even"}, "unknown spacing 'even'; known: uniform, simple, trailing, beta"),
        ({"spacing": "kerras"}, r"unknown spacing 'kerras' \(did you mean karras\?\)"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"steps": 1001}, "steps 1001: cannot take 1001 of 1000 timesteps"),
        ({"steps": 0, "sampler": "dpmpp"}, "'karras' spacing must be a whole number from 1 to 1000, got 0"),
        ({"steps": 1001, "sampler": "heun"}, "from 1 to 1000, got 1001"),
        ({"steps": "ddim50", "sampler": "euler"}, "got 'ddim50'; .* need spacing 'uniform'"),
        (
            {"eta": 0.5, "sampler": "euler"},
            "sampler 'euler' has no eta; ddim, euler_ancestral, .* and dpm_fast have",
        ),
        ({"s_churn": 4}, "sampler 'ddim' has no s_churn; euler, heun and dpm_2 have"),
        ({"restarts": [(0.1, 2, 1, 9)]}, "sampler 'ddim' has no restarts; only 'restart' has"),
        ({"sampler": "heun", "s_churn": -1}, "s_churn must be a number of at least 0, got -1"),
        ({"sampler": "heun", "s_noise": float("nan")}, "s_noise must be a number of at least 0, got nan"),
        ({"sampler": "heun", "s_tmin": 3, "s_tmax": 2}, "s_tmin must not be above s_tmax, got 3 and 2"),
        ({"sampler": "lms", "order": 5}, "the order of LMS must be a whole number from 1 to 4, got 5"),
        (
            {"sampler": "unipc", "order": 2.5},
            "the order of UniPC must be a whole number from 1 to 3, got 2.5",
        ),
        ({"sampler": "restart", "restarts": [(1, 2)]}, r"restarts must be rows .*, got \[\(1, 2\)\]"),
        ({"sampler": "restart", "restarts": [(2, 1, 1, 9)]}, "sigma_min below sigma_max; got 2 and 1"),
        ({"sampler": "restart", "restarts": [(1, 2, 0, 9)]}, "whole numbers of at least 1; got 0 and 9"),
        (
            {"sampler": "restart", "restarts": [(1, 90, 1, 9)]},
            "the restart from sigma 90 lies above the first level",
        ),
        ({"eta": -0.1}, "eta must be between 0 .* and 1 .*, got -0.1"),
        ({"eta": float("nan")}, "eta must be between 0"),
    ],
)
def test_errors(arguments, sentence) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        sampling_plan(GaussianDiffusion(), **{"sampler": "ddim", "steps": 50, **arguments})


def test_encoding_needs_two_levels() -> None:
    assert encoding_plan(GaussianDiffusion(), steps=2).calls == 1
    with pytest.raises(FastdiffError, match="encoding needs at least 2 steps, got 1"):
        encoding_plan(GaussianDiffusion(), steps=1)
