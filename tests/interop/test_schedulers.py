"""diffusers' schedulers against fastdiff's, over whole runs: same noise, same samples to float32 rounding."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from fastdiff.interop import diffusers as ours
from fastdiff.interop.diffusers import steps
from fastdiff.ops import reverse_step

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = [
    {"timestep_spacing": s, "steps_offset": o} for s, o in (("leading", 1), ("linspace", 0), ("trailing", 0))
]


def _run(scheduler: Any, count: int, out_channels: int = 3, **options: Any) -> list[Tensor]:
    """A model without sense: tanh of a mixture of channels. -> the states and estimates of all steps."""
    scheduler.set_timesteps(count)
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


def _compare(name: str, count: int, config: dict[str, Any], tolerance: float = 1e-5, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated algorithms
        theirs = getattr(diffusers, name)(**config)
        mine = getattr(ours, f"Fast{name}").from_config(theirs.config)
        assert isinstance(mine, type(theirs)) and dict(mine.config).items() >= config.items()
        for a, b in zip(_run(mine, count, **options), _run(theirs, count, **options), strict=True):
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
    for count in (4, 17):
        _compare("DPMSolverMultistepScheduler", count, config, tolerance)


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


NAMES = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"thresholding": True}),
        ("DDIMScheduler", {"clip_sample_range": 0.7}),
        ("DDPMScheduler", {"clip_sample_range": 2.0}),
        ("DDPMScheduler", {"thresholding": True}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ],
)
def test_where_one_pass_cannot_do_it_diffusers_own_step_runs(name: str, config: dict[str, Any]) -> None:
    _compare(name, 5, config, tolerance=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_other_step_is_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        steps, "reverse_step", lambda *args, **kwargs: (calls.append(1), reverse_step(*args, **kwargs))[1]
    )
    _run(getattr(ours, f"Fast{name}")(), 6)
    assert len(calls) == 6


@pytest.mark.parametrize("config", [{}, {"clip_sample": False}], ids=["clipped", "linear"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_diffusers(name: str, config: dict[str, Any]) -> None:
    """Gradients, with respect to the inputs, of a reward of the last state and of every other estimate of x_0."""
    gradients = []
    for module, prefix in ((diffusers, ""), (ours, "Fast")):
        scheduler = getattr(module, f"{prefix}{name}")(**config if name.startswith("DD") else {})
        scheduler.set_timesteps(6)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 3, 8, 8, generator=generator) * scheduler.init_noise_sigma
        weight, rewards = torch.tensor(0.5, requires_grad=True), []
        for i, t in enumerate(scheduler.timesteps):
            x = x.detach() if i % 2 == 0 else x
            m = scheduler.scale_model_input(x, t) * (weight if i % 2 else 0.5)
            done = scheduler.step(m, t, x, generator=generator)
            x = done.prev_sample
            rewards.append(x.square().mean() + getattr(done, "pred_original_sample", x).sin().mean())
        gradients.append(torch.autograd.grad(sum(rewards[1::2]), weight)[0])
    assert gradients[0].abs() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_options_that_are_set_later_count() -> None:
    scheduler = ours.FastDDIMScheduler()
    clipped = _run(scheduler, 6)
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    theirs = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    assert not torch.equal(_run(scheduler, 6)[0], clipped[0])
    for a, b in zip(_run(scheduler, 6), _run(theirs, 6), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    scheduler.alphas_cumprod.mul_(0.9)
    theirs.alphas_cumprod.mul_(0.9)
    torch.testing.assert_close(_run(scheduler, 6)[0], _run(theirs, 6)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("DDPMScheduler", {"timesteps": [900, 500, 100, 0]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 500, 100, 0]}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 500, 100, 0]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.0, 3.0, 0.7, 0.1, 0.0]}),
    ],
)
def test_time_steps_and_levels_of_ones_own(name: str, given: dict[str, Any]) -> None:
    states = []
    for scheduler in (getattr(diffusers, name)(), getattr(ours, f"Fast{name}")()):
        scheduler.set_timesteps(9)  # another run before
        scheduler.set_timesteps(**given)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 3, 8, 8, generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * scheduler.scale_model_input(x, t), t, x, generator=generator).prev_sample
        states.append(x)
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_configs_of_compatible_schedulers(name: str) -> None:
    mine = getattr(ours, f"Fast{name}")
    for other in (*NAMES, "PNDMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"):
        config = getattr(diffusers, other)(num_train_timesteps=123).config
        assert mine.from_config(config).config.num_train_timesteps == 123
        assert (
            getattr(diffusers, other).from_config(mine.from_config(config).config).config.num_train_timesteps
            == 123
        )


def test_a_pipeline_with_one_is_saved_and_loaded(tmp_path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    diffusers.DDIMPipeline(unet, ours.FastDDIMScheduler(num_train_timesteps=123)).save_pretrained(tmp_path)
    scheduler = diffusers.DDIMPipeline.from_pretrained(tmp_path).scheduler
    assert scheduler.config.num_train_timesteps == 123 and isinstance(scheduler, diffusers.DDIMScheduler)


def test_it_saves_and_loads(tmp_path) -> None:
    ours.FastDDIMScheduler(num_train_timesteps=123).save_pretrained(tmp_path)
    assert diffusers.DDIMScheduler.from_pretrained(tmp_path).config.num_train_timesteps == 123
    assert ours.FastDDIMScheduler.from_pretrained(tmp_path).config.num_train_timesteps == 123


def test_a_step_before_set_timesteps_is_what_diffusers_makes_of_it() -> None:
    zeros = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="set_timesteps"):
        ours.FastDDIMScheduler().step(zeros, 3, zeros)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    got = ours.FastDDPMScheduler().step(zeros, 3, zeros + 1, generators[0]).prev_sample
    wanted = diffusers.DDPMScheduler().step(zeros, 3, zeros + 1, generators[1]).prev_sample
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    scheduler = ours.FastDDPMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(IndexError):  # no time step of this run
        scheduler.step(zeros, 901, zeros)
