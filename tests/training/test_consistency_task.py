"""Consistency training as a run: it follows its teacher, resumes bit for bit, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastdiff
from fastdiff.cli import main
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.prepare import prepare


@pytest.fixture
def teacher(toy: dict[str, Any]) -> dict[str, Any]:
    """Options of a run that distils a model which the toy's options have trained for two steps."""
    trained = train(TrainConfig(**{**toy, "out": toy["out"].with_name("teacher")}, steps=2))
    return {**toy, "task": "consistency", "teacher": str(trained.model)}


@pytest.mark.parametrize(("pairs", "target_ema"), [("halving", 0), ("doubling", 0), ("grid", 0.9)])
def test_a_run_that_is_resumed_is_the_unbroken_one(teacher: dict[str, Any], pairs, target_ema: float) -> None:
    config = TrainConfig(**teacher, pairs=pairs, target_ema=target_ema, steps=8, checkpoint_every=4)
    whole = train(config).model
    parts = replace(config, out=config.out.with_name("parts"))
    shutil.copytree(config.out, parts.out)
    (parts.out / "checkpoints" / "step-00000008.safetensors").unlink()
    broken = train(parts).model
    assert whole is not None and broken is not None
    a, b = load_file(whole), load_file(broken)
    assert all(torch.equal(a[key], b[key]) for key in a)
    first = load_file(str(teacher["teacher"]))
    moved = [key for key in a if not torch.equal(a[key], first[key])]
    assert moved and set(a) == set(first)


def test_the_model_says_that_it_needs_few_steps(teacher: dict[str, Any]) -> None:
    taught = fastdiff.load(teacher["teacher"])
    found = fastdiff.load(train(TrainConfig(**teacher, steps=1)).model)
    assert found.diffusion == replace(taught.diffusion, few_steps=True)
    assert found.diffusion.is_consistent and not taught.diffusion.is_consistent
    again = train(TrainConfig(**{**teacher, "out": teacher["out"].with_name("more")}, steps=1, lr=1e-9))
    weights = load_file(again.model)
    for key, value in load_file(str(teacher["teacher"])).items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-6)  # it began with the teacher's


def test_without_a_teacher_it_learns_from_the_data(toy: dict[str, Any]) -> None:
    config = TrainConfig(**toy, task="consistency", steps=4, val_data=toy["data"], val_every=2, val_batches=2)
    train(config)
    rows = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4]
    assert all(row["loss"] >= 0 for row in rows if "loss" in row)


def test_stages_follow_the_steps(teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs of each step come from its share of the run, those of held-out images from the last stage."""
    seen = []
    from fastdiff.diffusion.consistency import LevelPairs

    whole = LevelPairs.__call__

    def noted(self: LevelPairs, sigma: torch.Tensor, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((progress, torch.is_grad_enabled()))
        return whole(self, sigma, progress)

    monkeypatch.setattr(LevelPairs, "__call__", noted)
    train(TrainConfig(**teacher, steps=4, val_data=teacher["data"], val_every=4, val_batches=1))
    assert [progress for progress, learning in seen if learning] == [0, 0.25, 0.5, 0.75]
    assert [progress for progress, learning in seen if not learning] == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss_weighting": "p2"}, "consistency training has a loss of its own; leave out --loss-weighting"),
        ({"timesteps": "loss-second-moment"}, "a loss of its own; leave out --timesteps"),
        ({"pairs": "grid", "pair_levels": 1}, "a grid of consistency training has at least 2 levels, got 1"),
        ({"task": "diffusion"}, "teacher is of consistency training; give --task consistency with --teacher"),
        ({"teacher": "missing.safetensors"}, "missing.safetensors"),
        (
            {"teacher": "fashion-mnist-classifier", "preset": "fashion-mnist"},
            "consistency training is for denoisers, and this network is none",
        ),
        ({"num_classes": 0}, "the teacher has num_classes 2 and the model None"),
        (
            {"pairs": "continuous"},
            "a model in discrete steps does not have; give --parametrisation edm or flow",
        ),
        (
            {"pairs": "continuous", "parametrisation": "edm", "teacher": None, "target_ema": 0.9},
            "--pairs continuous has a squared distance, no target network and whole weights; leave out --distance",
        ),
        ({"target_ema": 1.0}, "target_ema must be from 0 to below 1, got 1"),
        ({"target_ema": 0.9, "ema": (0.9, 0.99, 0.999, 0)}, "the target's is one of 4 averages; give fewer"),
        ({"target_ema": 0.9, "strategy": "fsdp"}, "the target's average is of whole weights"),
        ({"target_ema": 0.9, "task": "diffusion", "teacher": None}, "target_ema is of consistency training"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_are_read(
    teacher: dict[str, Any], options, sentence
) -> None:
    with pytest.raises(FastdiffError) as caught:
        prepare(TrainConfig(**{**teacher, "data": Path("nowhere"), **options}, steps=1))
    assert sentence in str(caught.value)


def test_a_teacher_of_other_levels_is_refused(teacher: dict[str, Any], toy: dict[str, Any]) -> None:
    preset = json.loads(Path(toy["preset"]).read_text())
    preset["diffusion"] = {"schedule": "sigmoid"}
    path = Path(toy["preset"]).with_name("other.json")
    path.write_text(json.dumps(preset))
    out = toy["out"].with_name("other")
    other = train(TrainConfig(**{**toy, "preset": str(path), "out": out}, steps=1)).model
    with pytest.raises(
        FastdiffError, match="levels and times must be the same; begin with the teacher's weights"
    ):
        prepare(
            TrainConfig(
                **{**teacher, "teacher": str(other), "init": teacher["teacher"], "preset": "fashion-mnist"},
                steps=1,
            )
        )


def test_samplers_and_commands_take_its_few_steps(teacher: dict[str, Any], tmp_path: Path) -> None:
    """Where nothing is asked for: the consistency sampler in two calls. What is asked for is done."""
    path = train(TrainConfig(**teacher, steps=1)).model
    model, taught = fastdiff.load(path), fastdiff.load(teacher["teacher"])
    found = {
        (s.sampler, s.calls)
        for s in (fastdiff.Sampler(model), fastdiff.Sampler(model, sampler="consistency", steps=2))
    }
    assert found == {("consistency", 2)}
    assert (fastdiff.Sampler(model, sampler="dpmpp").calls, fastdiff.Sampler(taught).calls) == (20, 20)
    assert fastdiff.Sampler(model, steps=4).calls == 4
    assert main(["sample", "-c", str(path), "-n", "2", "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as written:
        expected = fastdiff.sample(model, 2, classes=[0, 1], sampler="consistency", steps=2, progress=False)
        assert np.array_equal(written["arr_0"], fastdiff.to_uint8(expected).numpy())


def test_what_else_is_done_with_it(teacher: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """It fills in and interpolates by its own sampler, says which samplers misread it, and is not reversed."""
    path = train(TrainConfig(**teacher, steps=1)).model
    model, quiet = fastdiff.load(path), {"classes": 1, "progress": False}
    image, mask = torch.zeros(1, 8, 8), torch.ones(8, 8)
    mask[:4] = 0
    named = fastdiff.inpaint(model, image, mask, sampler="consistency", steps=10, **quiet)
    assert torch.equal(fastdiff.inpaint(model, image, mask, **quiet), named)
    assert named[0, 0, :4].eq(0).all()
    ends = [fastdiff.sample(model, 1, steps=1, seed=seed, **quiet) for seed in (3, 7)]
    row = fastdiff.interpolate(model, 3, 7, 3, **quiet)
    torch.testing.assert_close(row[[0, 2]], torch.cat(ends), atol=1e-5, rtol=1e-5)
    assert not caplog.messages
    fastdiff.sample(model, 1, sampler="dpmpp", steps=2, **quiet)
    assert "'consistency' samples it better" in caplog.text
    with pytest.raises(
        FastdiffError, match="no path from an image to its noise; encode with the model that it"
    ):
        fastdiff.encode(model, image[None], steps=4, **quiet)


@pytest.mark.filterwarnings("error:the weights of this model are frozen")
def test_the_target_follows_the_weights(teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Song et al. 2023, algorithm 2: after each step mu times the target and 1 - mu times the new weights."""
    from fastdiff.training import consistency

    whole, seen = consistency.consistency_losses, []

    def noted(process, model, *args, target, **options) -> torch.Tensor:
        seen.append([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (model, target)])
        assert target.training, "it drops the same units"
        return whole(process, model, *args, target=target, **options)

    monkeypatch.setattr(consistency, "consistency_losses", noted)
    train(TrainConfig(**teacher, target_ema=0.75, ema=(0.5,), steps=4))
    expected = seen[0][0]
    for weights, target in seen:
        expected = 0.75 * expected + 0.25 * weights
        torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(*seen[-1])


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_continuous_levels(toy: dict[str, Any], kind) -> None:
    """From nothing, and with that model as its own teacher: losses between 0 and 1, another model, resumed exactly."""
    first = TrainConfig(**toy, task="consistency", pairs="continuous", parametrisation=kind, steps=4)
    made = train(first).model
    assert made is not None
    rows = [json.loads(line) for line in (first.out / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["loss"] < 1 for row in rows if "loss" in row)
    assert fastdiff.load(made).diffusion.few_steps
    options = {
        **toy,
        "task": "consistency",
        "pairs": "continuous",
        "teacher": str(made),
        "checkpoint_every": 2,
    }
    del options["preset"]  # the teacher's is taken
    whole = train(TrainConfig(**{**options, "out": toy["out"].with_name("whole")}, steps=4)).model
    train(TrainConfig(**{**options, "out": toy["out"].with_name("parts")}, steps=2))
    broken = train(TrainConfig(**{**options, "out": toy["out"].with_name("parts")}, steps=4)).model
    assert whole is not None and broken is not None
    a, b = load_file(whole), load_file(broken)
    assert all(torch.equal(a[key], b[key]) for key in a)


class Features(torch.nn.Module):
    """In place of LPIPS's network: mean squared difference of blurred images, and what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.seen.append(a.shape)
        a, b = (torch.nn.functional.avg_pool2d(x, 28) for x in (a, b))
        return ((a - b) ** 2).mean((1, 2, 3), keepdim=True)


def test_lpips(teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of any size and colour reach the network as it wants them, and gradients come back through it."""
    from fastdiff.training import perceptual

    network = Features()
    distance = perceptual.Perceptual(network)
    for shape in ((2, 1, 8, 8), (2, 3, 64, 64), (2, 3, 256, 256)):
        a, b = torch.rand(2, *shape)
        a.requires_grad_()
        found = distance(a, b)
        assert found.shape == (2,)
        (gradient,) = torch.autograd.grad(found.sum(), a)
        assert gradient.abs().sum() > 0
    assert network.seen == [(2, 3, 224, 224), (2, 3, 224, 224), (2, 3, 256, 256)]
    monkeypatch.setattr(perceptual, "load_network", lambda: network)
    config = TrainConfig(**teacher, distance="lpips", steps=2, precision="bfloat16")
    assert train(config).model is not None
    assert len(network.seen) == 5


def test_lpips_says_what_it_lacks(teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff.training import perceptual

    image = pytest.importorskip("torchmetrics.image.lpip")
    config = TrainConfig(**teacher, distance="lpips", steps=1)
    sentences = {
        ModuleNotFoundError(
            "no torchvision"
        ): r"pip install 'torchmetrics\[image\]', or take another --distance",
        OSError("no network"): r"could not be downloaded \(no network\); put vgg16-397923af.pth into",
    }
    for error, sentence in sentences.items():

        def fails(*args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(image, "LearnedPerceptualImagePatchSimilarity", fails, raising=False)
        perceptual.load_network.cache_clear()
        with pytest.raises(FastdiffError, match=sentence):
            prepare(config)
