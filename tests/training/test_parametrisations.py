"""--parametrisation edm and flow: the losses in closed form, their noise, runs that learn and resume, bad options."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fastdiff
from fastdiff.cli import main
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.continuous import make_process
from fastdiff.diffusion.loss import training_losses
from fastdiff.diffusion.weighting import LossWeighting
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer
from fastdiff.training.timesteps import make_times

SIGMAS = [0.01, 0.3, 2.0, 40.0]
N = 40_000


def losses(kind: Any, off: float = 0.0, weighting: LossWeighting | None = None, std: float = 0.5) -> Tensor:
    """Mean loss at each of SIGMAS of the exact denoiser of N(0, std^2), its x_0 off by ``off``; [4]."""
    process = make_process(DiffusionConfig(parametrisation=kind))
    found = []
    for sigma in SIGMAS:
        g = torch.Generator().manual_seed(1)
        x0, noise = torch.randn(2, N, 1, generator=g, dtype=torch.float64)
        (signal,), (deviation,), _ = process.levels(torch.tensor([sigma], dtype=torch.float64).numpy())
        u, w = process.to_x0(signal, deviation)

        def exact(
            x: Tensor, t: Tensor, s: float = signal, n: float = deviation, u: float = u, w: float = w
        ) -> Tensor:
            x0 = s * std**2 / (s**2 * std**2 + n**2) * x + off
            return (x0 - u * x) / w

        t = torch.full((N,), sigma, dtype=torch.float64)
        loss = training_losses(process, exact, std * x0, t, noise=noise, weighting=weighting)["loss"]
        found.append(loss.mean())
    return torch.stack(found)


def posterior_variance(std: float = 0.5) -> Tensor:
    """Var[x_0 | x] of x_0 ~ N(0, std^2) at each of SIGMAS: std^2 sigma^2 / (std^2 + sigma^2)."""
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    return std**2 * sigma**2 / (std**2 + sigma**2)


def test_the_loss_of_an_exact_edm_model_is_1_at_every_sigma() -> None:
    """The weight 1 / c_out^2 is the inverse of the posterior variance of data with deviation sigma_data."""
    torch.testing.assert_close(losses("edm"), torch.ones(4, dtype=torch.float64), rtol=0.03, atol=0)
    # Any other x_0 costs off^2 / c_out^2 more: the exact one is the minimum.
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    more = 0.2**2 * (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(losses("edm", off=0.2) - losses("edm"), more, rtol=0.1, atol=0.03)


def test_the_loss_of_an_exact_flow() -> None:
    """The error of v is that of x_0 over t: Var[x_0 | x] / t^2 with t = sigma / (1 + sigma)."""
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    t = sigma / (1 + sigma)
    torch.testing.assert_close(losses("flow"), posterior_variance() / t**2, rtol=0.03, atol=0)
    torch.testing.assert_close(losses("flow", off=0.2) - losses("flow"), 0.04 / t**2, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_weightings_are_of_the_error_of_x0(kind: str) -> None:
    """min-snr: min(SNR, 5) Var[x_0 | x]; p2: SNR / (1 + SNR) Var[x_0 | x], whatever the model predicts."""
    snr = torch.tensor(SIGMAS, dtype=torch.float64) ** -2.0
    for name, weight in (("min-snr", snr.clamp(max=5)), ("p2", snr / (1 + snr))):
        found = losses(kind, weighting=LossWeighting(name))  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, weight * posterior_variance(), rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ({"parametrisation": "edm"}, -1.2, 1.2),
        ({"parametrisation": "edm", "noise_mean": 0.5, "noise_std": 2.0}, 0.5, 2.0),
        ({"parametrisation": "flow"}, 0.0, math.pi / math.sqrt(3)),  # uniform t: a logistic distribution
        ({"parametrisation": "flow", "noise_mean": 0.0}, 0.0, 1.0),
    ],
)
def test_the_noise_of_training(options: dict[str, Any], mean: float, std: float, toy: dict[str, Any]) -> None:
    config = TrainConfig(**toy, **options)
    times = make_times(config, make_process(DiffusionConfig(parametrisation=options["parametrisation"])))
    t, weight = times.draw(N, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float64 and (weight == 1).all()
    assert t.log().mean().item() == pytest.approx(mean, abs=0.05)
    assert t.log().std().item() == pytest.approx(std, rel=0.02)
    if options == {"parametrisation": "flow"}:
        share = t / (1 + t)
        assert share.mean().item() == pytest.approx(0.5, abs=0.01)
        assert share.std().item() == pytest.approx(12**-0.5, rel=0.02)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_run_learns_and_its_model_is_of_its_kind(kind: Any, toy: dict[str, Any]) -> None:
    """The bright halves of the toy images: after 150 steps the samples of class 0 are bright on the left."""
    config = TrainConfig(
        **{**toy, "log_every": 50}, parametrisation=kind, steps=150, lr=3e-3, ema=(0.9,), quiet=True
    )
    file = train(config).model
    assert file is not None
    lines = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    model: Any = fastdiff.load(file)
    assert model.diffusion == DiffusionConfig(parametrisation=kind, rescale_timesteps=kind == "flow")
    images = fastdiff.sample(model, 8, classes=0, steps=10, progress=False)
    assert images[..., :4].mean().item() > images[..., 4:].mean().item() + 0.3


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_run_resumes_bit_for_bit(kind: Any, toy: dict[str, Any], tmp_path: Path) -> None:
    options = {**toy, "parametrisation": kind, "checkpoint_every": 4, "val_data": toy["data"], "val_every": 3}
    options |= {"flip": True, "ema": (0.9, 0.99), "microbatch": 5, "quiet": True}
    train(TrainConfig(**{**options, "out": tmp_path / "whole"}, steps=10))
    for steps in (6, 10):
        train(TrainConfig(**{**options, "out": tmp_path / "parts"}, steps=steps))
    last = "checkpoints/step-00000010.safetensors"
    whole, parts = load_file(tmp_path / "whole" / last), load_file(tmp_path / "parts" / last)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(FastdiffError, match="was trained with parametrisation"):
        train(TrainConfig(**{**toy, "out": tmp_path / "parts", "ema": (0.9, 0.99), "flip": True}, steps=12))


def test_the_command_line(toy: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    given = [
        "--data",
        str(toy["data"]),
        "--preset",
        toy["preset"],
        "--parametrisation",
        "edm",
        "--noise-mean",
        "-0.5",
    ]
    options = ["--steps", "2", "--no-progress", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main(["train", *given, *options]) == 0
    trainer = Trainer(TrainConfig(**toy, parametrisation="edm"))
    assert trainer.state.model.diffusion.parametrisation == "edm"
    batch = trainer._batches.draw(0, trainer.state.times)
    assert batch.t.is_floating_point() and (batch.t > 0).all()


BAD = {
    "kl": ({"parametrisation": "edm", "loss": "kl"}, "loss 'kl' is the bound of a process in discrete steps"),
    "times": (
        {"parametrisation": "flow", "timesteps": "loss-second-moment"},
        "are of models in discrete steps, and this one is of kind 'flow'",
    ),
    "mean": ({"noise_mean": 0.0}, "noise_mean is of parametrisations edm and flow"),
    "std": ({"parametrisation": "edm", "noise_std": 0.0}, "noise_std must be a positive number"),
    "consistency": (
        {"preset": "cd-imagenet-64-l2"},
        "not trained by denoising; give --task consistency, or --p",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_make_no_sense_are_refused(toy: dict[str, Any], name: str) -> None:
    options, sentence = BAD[name]
    with pytest.raises(FastdiffError, match=sentence):
        Trainer(TrainConfig(**{**toy, **options}))
