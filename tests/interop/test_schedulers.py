"""diffusers' schedulers against fastdiff's, over whole runs: same noise, same samples to float32 rounding."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.interop import diffusers as ours

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = [
    {"timestep_spacing": s, "steps_offset": o} for s, o in (("leading", 1), ("linspace", 0), ("trailing", 0))
]


def _run(scheduler: Any, steps: int, out_channels: int = 3, **options: Any) -> list[Tensor]:
    """A model without sense: tanh of a mixture of channels. -> the states and estimates of all steps."""
    scheduler.set_timesteps(steps)
    weight = 0.3 * torch.randn(out_channels, 3, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator) * scheduler.init_noise_sigma
    states = []
    for t in scheduler.timesteps:
        m = torch.einsum("oc,nchw->nohw", weight, scheduler.scale_model_input(x, t)).tanh()
        done = scheduler.step(m, t, x, generator=generator, **options)
        x = done.prev_sample
        states.append(x)
        if getattr(done, "pred_original_sample", None) is not None:
            states.append(done.pred_original_sample)
    return states


def _compare(name: str, steps: int, config: dict[str, Any], tolerance: float = 1e-5, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated algorithms
        theirs = getattr(diffusers, name)(**config)
        mine = getattr(ours, f"Fast{name}").from_config(theirs.config)
        assert isinstance(mine, type(theirs)) and dict(mine.config).items() >= config.items()
        for a, b in zip(_run(mine, steps, **options), _run(theirs, steps, **options), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("eta", "clipped"), [(0.0, False), (0.0, True), (0.7, False), (1.0, True)])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim(prediction: str, clip: bool, eta: float, clipped: bool) -> None:
    config = {"prediction_type": prediction, "clip_sample": clip}
    _compare("DDIMScheduler", 10, config, eta=eta, use_clipped_model_output=clipped)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(prediction: str, variance: str) -> None:
    out_channels = 6 if variance == "learned_range" else 3
    config = {"prediction_type": prediction, "variance_type": variance}
    _compare("DDPMScheduler", 10, config, out_channels=out_channels)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize(
    "config",
    [
        *SPACINGS,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * i for i in range(1, 51)], "num_train_timesteps": 50},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    ids=lambda c: "-".join(map(str, c))[:40],
)
def test_schedules(name: str, config: dict[str, Any]) -> None:
    _compare(name, 7, config)


def test_ddim_without_a_last_one() -> None:
    _compare("DDIMScheduler", 10, {"set_alpha_to_one": False})


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("algorithm", "solver", "order", "final"),
    [
        way
        for way in itertools.product(
            ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
            ("midpoint", "heun"),
            (1, 2, 3),
            ("zero", "sigma_min"),
        )
        if ("++" in way[0] or way[3] == "sigma_min") and way[::2] != ("sde-dpmsolver", 3)
    ],
)
def test_dpm_solver(prediction: str, algorithm: str, solver: str, order: int, final: str) -> None:
    config = {"prediction_type": prediction, "algorithm_type": algorithm, "solver_type": solver}
    config |= {"solver_order": order, "final_sigmas_type": final}
    # epsilon from a predicted x_0 divides by a small sigma
    tolerance = 1e-4 if prediction == "sample" and algorithm in ("dpmsolver", "sde-dpmsolver") else 1e-5
    for steps in (4, 17):
        _compare("DPMSolverMultistepScheduler", steps, config, tolerance)


@pytest.mark.parametrize(
    "config",
    [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_dpm_solver_options(config: dict[str, Any]) -> None:
    _compare("DPMSolverMultistepScheduler", 8, config)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("churn", [0.0, 5.0])
@pytest.mark.parametrize(
    "config", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "leading"}], ids=str
)
def test_euler(prediction: str, config: dict[str, Any], churn: float) -> None:
    options = {"s_churn": churn, "s_tmin": 0.1, "s_noise": 1.003} if churn else {}
    _compare("EulerDiscreteScheduler", 9, {"prediction_type": prediction, **config}, **options)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_starting_in_the_middle(name: str) -> None:
    """As image-to-image pipelines do."""
    states = []
    for scheduler in (getattr(diffusers, name)(), getattr(ours, f"Fast{name}")()):
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(4)
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps[4:]:
            x = scheduler.step(0.5 * scheduler.scale_model_input(x, t), t, x).prev_sample
        states.append(x)
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-5)


def test_two_runs_of_one_scheduler() -> None:
    scheduler = ours.FastDPMSolverMultistepScheduler()
    assert all(torch.equal(a, b) for a, b in zip(_run(scheduler, 6), _run(scheduler, 6), strict=True))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"thresholding": True}),
        ("DDPMScheduler", {"clip_sample_range": 2.0}),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name: str, config: dict[str, Any]) -> None:
    option = next(iter(config))
    with pytest.raises(FastdiffError, match=option):
        getattr(ours, f"Fast{name}").from_config(getattr(diffusers, name)(**config).config)


def test_it_saves_and_loads(tmp_path) -> None:
    ours.FastDDIMScheduler(num_train_timesteps=123).save_pretrained(tmp_path)
    assert diffusers.DDIMScheduler.from_pretrained(tmp_path).config.num_train_timesteps == 123
    assert ours.FastDDIMScheduler.from_pretrained(tmp_path).config.num_train_timesteps == 123


def test_a_step_before_set_timesteps_says_what_to_do() -> None:
    with pytest.raises(FastdiffError, match="set_timesteps"):
        ours.FastDDIMScheduler().step(torch.zeros(1, 3, 8, 8), 3, torch.zeros(1, 3, 8, 8))
