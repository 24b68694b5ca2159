"""Upsamplers and classifiers from the first step to the command that samples with them; every preset has its task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fastdiff
from fastdiff.cli import main
from fastdiff.models import Classifier, ClassifierConfig, SuperResUNet
from fastdiff.training import TrainConfig, train
from fastdiff.training.batches import Batch
from fastdiff.training.prepare import make_task
from fastdiff.training.setup import architecture

MODEL = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1}
PIXELS = torch.randint(256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DIFFUSION = {"steps": 20, "schedule": "cosine", "prediction": "v"}


def preset(toy: dict[str, Any], kind: str, **model: Any) -> dict[str, Any]:
    """The toy run's options with another network."""
    content = {"kind": kind, "model": {**MODEL, **model}, "diffusion": DIFFUSION}
    Path(toy["preset"]).write_text(json.dumps(content))
    return toy


@pytest.fixture
def upsampler(toy: dict[str, Any]) -> dict[str, Any]:
    return preset(toy, "unet", out_channels=1, attention_resolutions=[], low_res="bilinear", num_classes=2)


@pytest.fixture
def classifier(toy: dict[str, Any]) -> dict[str, Any]:
    return preset(toy, "classifier", attention_resolutions=[8], num_outputs=2)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", fastdiff.PRESETS)
def test_every_preset_has_a_task(name: str) -> None:
    """The networks of consistency models have one as EDM models."""
    kind = "edm" if fastdiff.PRESETS[name].diffusion.parametrisation == "consistency" else None
    config = TrainConfig(data=Path(), out=Path(), preset=name, parametrisation=kind)
    model, diffusion = architecture(config)
    task = make_task(config, model, diffusion)
    classes = model.num_outputs if isinstance(model, ClassifierConfig) else model.num_classes
    assert task.num_classes == classes and task.measures[0] == "loss"


def test_upsampler_learns_and_enlarges(upsampler: dict[str, Any], tmp_path: Path) -> None:
    config = TrainConfig(**{**upsampler, "sample_every": 120}, steps=120, lr=3e-3)
    result = train(config)
    losses = [line["loss"] for line in log(config.out)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert result.model is not None
    model = fastdiff.load(result.model)
    assert isinstance(model, SuperResUNet)

    images = torch.from_numpy(np.load(upsampler["data"])["images"][:4, None]).float() / 127.5 - 1
    small = F.interpolate(images, size=(2, 2), mode="area")  # 8 / 4
    large = fastdiff.upsample(model, small, classes=[0, 1, 0, 1], steps=10, sampler="dpmpp", progress=False)
    assert (large - images).square().mean() < 0.25 * images.var()
    with Image.open(config.out / "samples" / "step-00000120.png") as picture:
        assert picture.width > 2 * picture.height  # eight columns, three rows


def test_upsampler_enlarges_the_samples_of_a_denoiser(upsampler: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    config = TrainConfig(**{**upsampler, "out": tmp_path / "upsampler"}, steps=1)
    train(config)
    preset(upsampler, "unet", image_size=4, out_channels=1, attention_resolutions=[], num_classes=2)
    train(TrainConfig(**{**upsampler, "out": tmp_path / "base"}, steps=1))
    options = ["--checkpoint", str(tmp_path / "base" / "model.safetensors"), "--n", "4"]
    options += ["--upsampler", str(config.out / "model.safetensors"), "--steps", "2", "--no-progress"]
    assert main(["sample", *options, "--out", str(tmp_path / "samples")]) == 0
    assert np.load(tmp_path / "samples" / "samples.npz")["arr_0"].shape == (4, 8, 8, 1)


def test_small_size_is_the_users_choice(upsampler: dict[str, Any]) -> None:
    config = TrainConfig(**upsampler, small_size=4)
    seen: dict[str, Any] = {}

    def model(x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        seen.update(cond)
        return torch.zeros_like(x)

    batch = Batch(
        PIXELS[:3], torch.arange(3), torch.zeros(3).long(), torch.ones(3), torch.tensor([0, 1, 0]), 0
    )
    make_task(config, *architecture(config)).losses(model, batch)
    means = batch.x0.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))  # of 2x2 areas
    torch.testing.assert_close(seen["low_res"], means)
    assert seen["y"].tolist() == [0, 1, 0]


def test_noise_of_the_small_images(upsampler: dict[str, Any]) -> None:
    """The deviation is uniform in 0 to s, drawn for each image; the noise is independent of the process's."""
    config = TrainConfig(**upsampler, small_size=4, low_res_noise=0.2)
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        seen.append(cond["low_res"])
        return torch.zeros_like(x)

    n = 2000
    pixels = torch.full((n, 1, 8, 8), 128, dtype=torch.uint8)
    parts = pixels, torch.arange(n), torch.zeros(n).long(), torch.ones(n), torch.zeros(n).long()
    task = make_task(config, *architecture(config))
    for step in (0, 0, 1):
        task.losses(model, Batch(*parts, step))
    first, again, next_step = ((small - (128 / 127.5 - 1)) / 0.2 for small in seen)
    assert torch.equal(first, again) and not torch.equal(first, next_step)
    deviations = first.std(dim=(1, 2, 3))
    assert abs(first.mean()) < 0.02 and abs(deviations.mean() - 0.5) < 0.03
    assert abs((first**2).mean() - 1 / 3) < 0.02  # E u^2
    assert deviations.min() < 0.05 and deviations.quantile(0.9) > 0.8
    noise = Batch(*parts, 0).noise.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    assert abs(torch.corrcoef(torch.stack([first.flatten(), noise.flatten()]))[0, 1]) < 0.02


def test_classifier_learns_and_is_measured_on_other_images(classifier: dict[str, Any]) -> None:
    config = TrainConfig(
        **{**classifier, "sample_every": 30},
        steps=60,
        lr=3e-3,
        val_data=classifier["data"],
        val_every=30,
        val_batches=4,
    )
    result = train(config)
    lines = log(config.out)
    training, validation = (
        [line for line in lines if "loss" in line],
        [line for line in lines if "val_loss" in line],
    )
    assert [line["step"] for line in validation] == [30, 60]
    assert training[-1]["loss"] < 0.2 < training[0]["loss"]
    assert "acc@1" in training[0] and "acc@5" not in training[0]  # two classes have no five
    assert validation[-1]["val_acc@1"] > 0.9 and validation[-1]["val_loss"] < validation[0]["val_loss"]
    assert not (config.out / "samples").exists()
    assert result.model is not None
    model = fastdiff.load(result.model)
    assert isinstance(model, Classifier) and model.diffusion.schedule == "cosine"


def test_classifier_guides_samples(classifier: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    train(TrainConfig(**{**classifier, "out": tmp_path / "classifier"}, steps=1))
    preset(classifier, "unet", out_channels=1, attention_resolutions=[])
    train(TrainConfig(**{**classifier, "out": tmp_path / "model"}, steps=1))
    options = ["--checkpoint", str(tmp_path / "model" / "model.safetensors"), "--n", "2"]
    options += ["--classifier", str(tmp_path / "classifier" / "model.safetensors"), "--classes", "1"]
    out = ["--steps", "2", "--no-progress", "--out", str(tmp_path / "samples")]
    assert main(["sample", *options, *out]) == 0
    assert np.load(tmp_path / "samples" / "samples.npz")["arr_1"].tolist() == [1, 1]


@pytest.mark.parametrize("noised", [True, False])
def test_classifier_loss_is_cross_entropy_at_the_drawn_time(classifier: dict[str, Any], noised: bool) -> None:
    preset(classifier, "classifier", attention_resolutions=[8], num_outputs=6)
    config = TrainConfig(**classifier, noised=noised)
    model_config, diffusion = architecture(config)
    task = make_task(config, model_config, diffusion)
    assert task.measures == ("loss", "acc@1", "acc@5")
    t, y = torch.tensor([3, 19, 0, 7]), torch.tensor([0, 1, 2, 5])
    batch = Batch(PIXELS, torch.arange(4), t, torch.ones(4), y, 2)
    logits = torch.tensor([6.0, 5, 4, 3, 2, 1]).expand(4, 6)
    seen = []

    def model(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append((x, times))
        return logits

    measures = task.losses(model, batch)
    (x, times), process = seen[0], fastdiff.GaussianDiffusion(diffusion)
    torch.testing.assert_close(x, process.q_sample(batch.x0, t, batch.noise) if noised else batch.x0)
    assert times.tolist() == (t.tolist() if noised else [0] * 4)
    torch.testing.assert_close(measures[:, 0], logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0])
    assert measures[:, 1].tolist() == [1, 0, 0, 0] and measures[:, 2].tolist() == [1, 1, 1, 0]


def test_learned_variance_is_logged_in_parts(toy: dict[str, Any]) -> None:
    content = {
        "model": {**MODEL, "out_channels": 1, "attention_resolutions": []},
        "diffusion": {**DIFFUSION, "variance": "learned_range"},
    }
    Path(toy["preset"]).write_text(json.dumps(content))
    train(TrainConfig(**toy, steps=2))
    for line in log(toy["out"]):
        assert line["loss"] == pytest.approx(line["mse"] + line["vb"], rel=1e-5)
