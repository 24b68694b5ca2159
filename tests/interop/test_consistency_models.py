"""The mirror of openai/consistency_models against numbers that its own code gave (consistency_numbers.json).

There it was given the network F(x, t) = tanh(0.7 x + 0.3 cos(t / 100)) in float64, or its own U-Net with attention in
float32 (which it computes in float16 otherwise) and weights 0.1 sin(1.7 i + k) in the k-th parameter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.schedule import karras_sigmas
from fastdiff.interop.consistency_models.karras_diffusion import KarrasDenoiser, karras_sample
from fastdiff.interop.consistency_models.random_util import get_generator
from fastdiff.interop.consistency_models.resample import create_named_schedule_sampler
from fastdiff.interop.consistency_models.script_util import (
    create_ema_and_scales_fn,
    create_model,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from fastdiff.sampling.loop import run
from fastdiff.sampling.samplers import sampling_plan

NUMBERS: dict[str, Any] = json.loads((Path(__file__).parent / "consistency_numbers.json").read_text())
SAMPLERS: dict[str, dict[str, Any]] = {
    "heun": {},
    "heun_churn": {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003},
    "dpm": {},
    "dpm_churn": {"s_churn": 3.0},
    "euler": {},
    "ancestral": {},
    "onestep": {},
    "multistep": {"ts": (0, 3, 6)},
    "progdist": {},
}


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    return torch.tanh(0.7 * x + 0.3 * torch.cos(t / 100).reshape(-1, 1, 1, 1))


class Stream:
    """Noise in the order in which it is asked for."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def randn(self, *size: int, device: Any = None) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    def randn_like(self, x: Tensor) -> Tensor:
        return self.randn(*x.shape)


def data() -> tuple[Tensor, Tensor, Tensor]:
    """x_0, noise and sigma."""
    torch.manual_seed(0)
    return torch.randn(3, 1, 1, 2), torch.randn(3, 1, 1, 2), torch.tensor([0.02, 0.6, 7.0])


def close(found: Any, name: str, tolerance: float = 1e-11) -> None:
    expected = torch.tensor(NUMBERS[name]).flatten()
    torch.testing.assert_close(
        torch.as_tensor(found).flatten().to(expected), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str, distillation: bool) -> None:
    """The samples, and the number that the generator gives next: as many were drawn."""
    stream = Stream()
    found = karras_sample(
        KarrasDenoiser(distillation=distillation),
        network,
        (2, 1, 1, 2),
        steps=7,
        model_kwargs={},
        device="cpu",
        sampler=name.split("_")[0],
        generator=stream,
        **SAMPLERS[name],
    )
    close(found, f"{name}/{distillation}")
    close(stream.randn(1)[0], f"{name}/{distillation}/next")


@pytest.mark.parametrize("distillation", [False, True])
def test_fastdiffs_own_samplers_give_the_same(distillation: bool) -> None:
    """heun and euler of fastdiff.sample, on the process of the same kind and the same grid."""
    kind = DiffusionConfig(parametrisation="consistency" if distillation else "edm")
    noise = Stream().randn(2, 1, 1, 2)
    for name in ("heun", "euler"):
        found = fastdiff.sample(
            network, 2, shape=(1, 1, 2), diffusion=kind, sampler=name, steps=7, noise=noise, progress=False
        )
        close(found, f"{name}/{distillation}", 1e-10)
    # One step is D at sigma_max, whatever the sampler.
    one = fastdiff.sample(network, 2, shape=(1, 1, 2), diffusion=kind, sampler="euler", steps=1, noise=noise)
    close(one, f"onestep/{distillation}", 1e-10)


def test_fastdiffs_consistency_sampler_is_multistep() -> None:
    """Points 0, 3 and 6 of the grid of 7: two calls; the last point, sigma_min, adds no noise."""
    process, stream = make_process(DiffusionConfig(parametrisation="consistency")), Stream()
    sigmas = [*karras_sigmas(7)[[0, 3]], 0.0]
    plan = sampling_plan(process, sampler="consistency", steps=2, sigmas=sigmas)
    x = plan.start * stream.randn(2, 1, 1, 2)
    found = run(plan, network, x, step_noise=lambda step, x: stream.randn_like(x))
    close(found, "multistep/True", 1e-8)


@pytest.mark.parametrize("distillation", [False, True])
def test_coefficients_are_those_of_the_process(distillation: bool) -> None:
    denoiser = KarrasDenoiser(distillation=distillation)
    process = make_process(DiffusionConfig(parametrisation="consistency" if distillation else "edm"))
    sigma = torch.tensor([0.002, 0.5, 80.0])
    signal, noise, _ = process.levels(sigma.numpy())
    scalings = denoiser.get_scalings_for_boundary_condition if distillation else denoiser.get_scalings
    c_skip, c_out, c_in = scalings(sigma)
    torch.testing.assert_close(torch.from_numpy(signal), c_in)
    u, w = torch.tensor([process.to_x0(s, n) for s, n in zip(signal, noise, strict=True)]).T
    torch.testing.assert_close(u, c_skip / c_in)
    torch.testing.assert_close(w, c_out)


@pytest.mark.parametrize("weights", ["snr", "snr+1", "karras", "truncated-snr", "uniform"])
def test_losses_of_edm(weights: str) -> None:
    x0, noise, sigma = data()
    losses = KarrasDenoiser(weight_schedule=weights).training_losses(network, x0, sigma, noise=noise)
    close(losses["loss"], f"train/{weights}")


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_consistency_losses(norm: str, teacher: bool) -> None:
    denoiser = KarrasDenoiser(weight_schedule="uniform", distillation=True, loss_norm=norm)
    x0, noise, _ = data()
    torch.manual_seed(5)
    found = denoiser.consistency_losses(
        network,
        x0,
        18,
        target_model=network,
        teacher_model=network if teacher else None,
        teacher_diffusion=KarrasDenoiser(),
        noise=noise,
    )
    close(found["loss"], f"cons/{norm}/{teacher}")


@pytest.mark.parametrize("kind", ["determ", "determ-indiv"])
def test_generators(kind: str) -> None:
    generator = get_generator(kind, 5, 42)
    first, labels = generator.randn(2, 2), generator.randint(0, 1000, (2,))
    like = generator.randn_like(torch.zeros(2, 2, dtype=torch.float32))
    generator.set_done_samples(3)
    drawn = [first.flatten(), labels, like.flatten(), generator.randn(3, 1).flatten()]
    for found, expected in zip(drawn, NUMBERS[f"gen/{kind}"], strict=True):
        torch.testing.assert_close(
            found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0
        )


@pytest.mark.parametrize("name", ["fixed-fixed", "fixed-progressive", "adaptive-progressive"])
def test_schedule_of_average_and_levels(name: str) -> None:
    target, scale = name.split("-")
    schedule = create_ema_and_scales_fn(target, 0.95, scale, 2, 150, 1000, 50000)
    assert [schedule(step) for step in (0, 10, 500, 999)] == [
        (pytest.approx(ema, rel=1e-12), levels) for ema, levels in NUMBERS[f"ema/{name}"]
    ]


@pytest.mark.parametrize("scale_shift", [True, False])
def test_the_network_and_its_files(scale_shift: bool) -> None:
    """Its state dict has 2-d projections; values at a real-valued time, in float32."""
    torch.set_default_dtype(torch.float32)
    model = create_model(
        32, 32, 1, channel_mult="1,2", attention_resolutions="16", num_head_channels=32,
        use_scale_shift_norm=scale_shift, resblock_updown=True,
    )  # fmt: skip
    state = {
        name: (0.1 * torch.sin(1.7 * torch.arange(p.numel(), dtype=torch.float64) + k))
        .float()
        .reshape(p.shape)
        for k, (name, p) in enumerate(model.state_dict().items())
    }
    expected = NUMBERS[f"net/{scale_shift}"]
    assert len(state) == expected["keys"]
    assert {p.dim() for name, p in state.items() if ".qkv.weight" in name} == {4}
    model.load_state_dict(state)
    model.eval()
    x = torch.sin(torch.arange(2 * 3 * 32 * 32) * 0.37).reshape(2, 3, 32, 32)
    with torch.no_grad():
        y = model(x, torch.tensor([-1500.25, 777.5]))
    assert y.norm().item() == pytest.approx(expected["norm"], rel=1e-5)
    torch.testing.assert_close(
        y[:, :, ::16, ::16].flatten(), torch.tensor(expected["y"]), rtol=1e-4, atol=1e-5
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_names_that_are_not_known() -> None:
    with pytest.raises(NotImplementedError, match="known: dummy, determ, determ-indiv"):
        get_generator("random")
    with pytest.raises(NotImplementedError, match="unknown weight_schedule 'edm'"):
        KarrasDenoiser(weight_schedule="edm").training_losses(network, *data()[::2])
    with pytest.raises(ValueError, match="unknown loss norm 'lp'"):
        KarrasDenoiser(loss_norm="lp").consistency_losses(network, data()[0], 4, target_model=network)
    defaults = {
        **model_and_diffusion_defaults(),
        "loss_norm": "l2",
        "num_channels": 32,
        "channel_mult": "1,1",
    }
    model, diffusion = create_model_and_diffusion(**defaults, distillation=True)
    assert diffusion.distillation and diffusion.loss_norm == "l2" and model.config.use_new_attention_order
    t, weights = create_named_schedule_sampler("lognormal", diffusion).sample(20_000, "cpu")
    assert t.log().mean().item() == pytest.approx(-1.2, abs=0.04) and (weights == 1).all()
