"""EDM, consistency models and flows: every sampler, condition and reversal, against exact denoisers in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff import DiffusionConfig, FastdiffError, Guide, Inpaint
from fastdiff.diffusion.config import Parametrisation
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.process import Process
from fastdiff.models import UNet, UNetConfig
from fastdiff.sampling import Sampler
from fastdiff.sampling.levels import make_levels
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS

KINDS: list[Parametrisation] = ["edm", "consistency", "flow"]
MEAN, STD = 0.2, 0.5


class Exact:
    """The network whose x_0 is exactly E[x_0 | x] for x_0 ~ N(MEAN, STD^2) in each pixel; float64 throughout."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def sigma(self, t: Tensor) -> np.ndarray:
        time = t.double().numpy()
        if self.process.config.parametrisation == "flow":
            return time / (1 - time)
        return np.exp(time / 250)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        signal, noise, _ = self.process.levels(self.sigma(t)[:1])
        s, n = float(signal[0]), float(noise[0])
        x0 = MEAN + s * STD**2 / (s**2 * STD**2 + n**2) * (x.double() - s * MEAN)
        u, w = self.process.to_x0(s, n)
        return (x0 - u * x.double()) / (w or 1.0)  # at w = 0 the output does not matter


def process(kind: Parametrisation) -> Process:
    return make_process(DiffusionConfig(parametrisation=kind))


def sampler(kind: Parametrisation, **options) -> Sampler:
    found = process(kind)
    return Sampler(Exact(found), (3,), diffusion=found, **{"clip": False, **options})


@pytest.mark.parametrize("kind", ["edm", "flow"])
@pytest.mark.parametrize(("name", "spacing"), [("ddim", "uniform"), ("euler", "karras"), ("euler", "logsnr")])
def test_a_gaussian_shrinks_by_a_product_of_cosines(kind, name, spacing) -> None:
    """x_T = MEAN + deviations: the mean stays, a deviation is multiplied by prod cos(theta_i - theta_(i+1)), where
    tan theta = sigma / STD, relative to the exact solution. The state begins at noise_T z."""
    levels = make_levels(process(kind), 30, spacing)
    noise = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
    out = sampler(kind, sampler=name, spacing=spacing, steps=30)(1, noise=noise, progress=False)[0]
    theta = np.arctan(levels.sigmas / STD)
    exact = STD / math.hypot(STD, levels.sigmas[0])  # of a deviation in y = x / signal, down to sigma = 0
    shrunk = exact * np.prod(np.cos(np.diff(theta)))
    y = levels.sigmas[0] * noise[0]
    torch.testing.assert_close(out, MEAN + shrunk * (y - MEAN), rtol=1e-9, atol=1e-9)


def options_of(name: str) -> dict[str, float]:
    return {"eta": 1.0} if name == "ddim" else {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(DIFFUSION_SAMPLERS))
def test_every_sampler_gives_what_it_gives_a_discrete_process(kind, name) -> None:
    """In y = x / signal samplers know sigma alone: all kinds agree at the same sigmas and with the same noise."""
    discrete = fastdiff.GaussianDiffusion(DiffusionConfig(prediction="x0"))
    low, high = discrete.sigma_range
    options = {"sampler": name, "spacing": "karras", "steps": 12, "clip": False, **options_of(name)}

    def exact_x0(x: Tensor, sigma: Tensor) -> Tensor:
        s = float(1 / (1 + sigma[0] ** 2) ** 0.5)
        return MEAN + s * STD**2 / (s**2 * STD**2 + 1 - s**2) * (x * s - s * MEAN)

    found = make_process(DiffusionConfig(parametrisation=kind, sigma_min=low, sigma_max=high))
    z = torch.tensor([[-1.0, 0.3, 2.0]], dtype=torch.float64)
    of_kind = Sampler(Exact(found), (3,), diffusion=found, **options)
    expected = Sampler(exact_x0, (3,), diffusion=discrete, time="sigma", **options)
    start = z * high / math.hypot(1, high)  # x_T of a discrete process is what it is given
    # The last call of a consistency model is at sigma_min, where it returns its input.
    bound = 1e-3 if kind == "consistency" else 1e-8
    torch.testing.assert_close(
        of_kind(1, noise=z, seed=4, progress=False),
        expected(1, noise=start, seed=4, progress=False),
        rtol=bound,
        atol=bound,
    )


@pytest.mark.parametrize("name", ["ddim", "dpmpp", "euler", "heun"])
def test_samplers_on_the_own_grid_of_a_flow(name) -> None:
    """Evenly spaced times: the exact solution is MEAN + STD z, up to what is left of MEAN at sigma_max."""
    z = torch.tensor([[-1.5, 0.0, 1.0]], dtype=torch.float64)
    made = sampler("flow", sampler=name, spacing="uniform", steps=200)(1, noise=z, progress=False)
    torch.testing.assert_close(made, MEAN + STD * z, rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_sampling_follows_the_moment_recursion(kind) -> None:
    """In y = x / signal: y_s = (s^2/t^2) y_t + (1 - s^2/t^2) x_0 + sqrt(s^2 (t^2 - s^2)/t^2) z, for 60 steps."""
    n = 20_000
    sigma = make_levels(process(kind), 60, "karras").sigmas
    mean, var = 0.0, sigma[0] ** 2
    for t, s in zip(sigma, sigma[1:], strict=False):
        gain, share = STD**2 / (STD**2 + t**2), s**2 / t**2
        factor = share + (1 - share) * gain
        mean = factor * mean + (1 - share) * (1 - gain) * MEAN
        var = factor**2 * var + share * (t**2 - s**2)
    samples = sampler(kind, sampler="ancestral", spacing="karras", steps=60)(n, seed=3, progress=False)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(var / (3 * n)))
    assert samples.var().item() == pytest.approx(var, rel=4 * math.sqrt(2 / (3 * n)))
    assert (mean, var) == pytest.approx((MEAN, STD**2), abs=0.05)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_encode_then_decode(kind) -> None:
    images = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
    errors = []
    for steps in (100, 200):
        reversible = sampler(kind, sampler="ddim", steps=steps)
        latents = reversible.encode(images, progress=False)
        errors.append((reversible(3, noise=latents, progress=False) - images).abs().max().item())
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.35)
    # The latents are those of standard normal noise: (y - MEAN) / sqrt(STD^2 + sigma^2) is conserved along the ODE.
    sigma = make_levels(process(kind), 200).sigmas[0]
    z = (MEAN + (images - MEAN) * math.hypot(STD, sigma) / STD) / sigma
    torch.testing.assert_close(latents, z, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_inpainting_keeps_known_pixels(kind) -> None:
    image = torch.tensor([0.3, -0.7, 0.0], dtype=torch.float64)
    mask = torch.tensor([0, 0, 1])
    for name, repeats in (("ancestral", 2), ("heun", 1)):
        made = sampler(kind, sampler=name, spacing="karras", steps=40)(
            500, condition=Inpaint(image, mask, repeats), seed=1, progress=False
        )
        assert (made[:, :2] == image[:2].float()).all()
        assert made[:, 2].mean().item() == pytest.approx(MEAN, abs=0.1)  # pixels are independent
        assert made[:, 2].std().item() == pytest.approx(STD, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_by_a_gaussian_is_the_product(kind) -> None:
    """With the exact r_t(x) = E[r(x_0) | x], r = exp(k x_0): samples are N(MEAN + k STD^2, STD^2)."""
    k, found = 0.8, process(kind)

    def log_r(x: Tensor, t: Tensor) -> Tensor:
        signal, noise, _ = found.levels(Exact(found).sigma(t)[:1])
        s, n = float(signal[0]), float(noise[0])
        return (k * s * STD**2 / (s**2 * STD**2 + n**2) * x).sum(1)

    made = sampler(kind, sampler="dpmpp", spacing="karras", steps=60)(
        4000, condition=Guide(log_r), seed=2, progress=False
    )
    assert made.mean().item() == pytest.approx(MEAN + k * STD**2, abs=0.02)
    assert made.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_and_its_file(kind, tmp_path) -> None:
    """A U-Net of each kind is saved, loaded, and sampled on the optimized engine as it is without; the time of EDM is
    a fraction, and the first call's x is z sqrt(sigma^2 / (sigma^2 + s^2))."""
    torch.manual_seed(0)
    config = UNetConfig(image_size=8, model_channels=32, channel_mult=(1,), attention_resolutions=(8,))
    model = UNet(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.diffusion = DiffusionConfig(parametrisation=kind)
    fastdiff.save(model, tmp_path / "model.safetensors")
    loaded = fastdiff.load(tmp_path / "model.safetensors")
    assert loaded.diffusion == model.diffusion
    fast = fastdiff.sample(loaded, 2, sampler="heun", steps=4, seed=1, progress=False)
    slow = fastdiff.sample(model, 2, sampler="heun", steps=4, seed=1, progress=False, optimize=False)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)

    calls: list[tuple[Tensor, Tensor]] = []

    def recorded(x: Tensor, t: Tensor) -> Tensor:
        calls.append((x, t))
        return torch.zeros_like(x)

    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    options = {"shape": (3, 8, 8), "diffusion": model.diffusion, "sampler": "euler", "spacing": "karras"}
    fastdiff.sample(recorded, 1, noise=noise, steps=3, progress=False, **options)
    share = 80 / 81 if kind == "flow" else 80 / math.hypot(80, 0.5)
    torch.testing.assert_close(calls[0][0], noise * share)
    assert calls[0][1].item() == pytest.approx(share if kind == "flow" else 250 * math.log(80))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": "ddim50", "sampler": "ddim"}, "trained in discrete steps"),
        ({"steps": "ddim50", "sampler": "euler"}, "whole number of at least 1"),
        ({"steps": 0}, "whole number of at least 1"),
        ({"predicts": "x0"}, "leave out predicts"),
        ({"time": "sigma"}, "its own time"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_options_of_discrete_models_are_refused(kind, options, words) -> None:
    with pytest.raises(FastdiffError, match=words):
        sampler(kind, **options)
