"""The training loop: it learns, logs, stops and refuses as it promises."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer
from fastdiff.training.setup import architecture
from fastdiff.training.state import checkpoints
from fastdiff.training.update import Update


def log(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bfloat16", "batch_size": 4},
        {"timesteps": "loss-second-moment", "flip": True, "clip_norm": 0.0},
    ],
    ids=["plain", "bfloat16", "importance"],
)
def test_loss_falls_on_a_toy_set(toy: dict[str, Any], options: dict[str, Any]) -> None:
    config = TrainConfig(**{**toy, **options}, steps=100, lr=3e-3)
    result = train(config)
    losses = [line["loss"] for line in log(config)]
    assert result.step == len(losses) == 100
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_saved_model_is_the_average(toy_config: TrainConfig) -> None:
    trainer = Trainer(toy_config)
    path = trainer.run().model
    assert path is not None
    model = fastdiff.load(path)
    torch.testing.assert_close(
        dict(model.state_dict()), dict(trainer.state.averaged().state_dict()), rtol=0, atol=0
    )
    assert model.config == trainer.state.model.config
    assert model.diffusion == trainer.state.model.diffusion


def test_only_the_last_checkpoints_stay(toy: dict[str, Any]) -> None:
    config = TrainConfig(**toy, steps=7, checkpoint_every=2, keep=2)
    train(config)
    assert [path.stem for path in checkpoints(config.out)] == ["step-00000006", "step-00000007"]


def test_nan_names_the_step_and_keeps_the_checkpoint(
    toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**{**toy, "log_every": 4}, steps=20, checkpoint_every=3)
    trainer = Trainer(config)
    step = Update.__call__

    def poisoned(self: Update) -> torch.Tensor:
        if self.state.step == 4:  # the fifth
            next(self.state.model.parameters()).data[:] = math.nan
        return step(self)

    monkeypatch.setattr(Update, "__call__", poisoned)
    with pytest.raises(FastdiffError, match=r"loss nan, .* at step 5: .*step-00000003"):
        trainer.run()
    assert [path.stem for path in checkpoints(config.out)] == ["step-00000003"]
    monkeypatch.undo()
    assert train(config).step == 20


def test_interrupt_finishes_the_step_and_writes_a_checkpoint(
    toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**toy, steps=20, checkpoint_every=100)
    trainer = Trainer(config)
    step = Update.__call__

    def interrupted(self: Update) -> torch.Tensor:
        if self.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Update, "__call__", interrupted)
    assert trainer.run() == (4, None)
    assert [path.stem for path in checkpoints(config.out)] == ["step-00000004"]
    stopped = fastdiff.load(config.out / "model.safetensors")  # what there is of it can be used
    assert torch.equal(stopped.out[2].weight, trainer.state.averaged().out[2].weight)


def test_refuses_to_go_on_with_other_options(toy_config: TrainConfig) -> None:
    train(toy_config)
    with pytest.raises(FastdiffError, match="trained with lr = 0.001, now 0.1 is asked for"):
        train(dataclasses.replace(toy_config, lr=0.1))
    with pytest.raises(FastdiffError, match="holds an earlier run"):
        train(dataclasses.replace(toy_config, resume="never"))
    with pytest.raises(FastdiffError, match="at step 6 already"):
        train(dataclasses.replace(toy_config, steps=5))


def test_broken_checkpoint(toy_config: TrainConfig) -> None:
    train(toy_config)
    last = checkpoints(toy_config.out)[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(
        FastdiffError, match="is broken .*; delete it to go on from the one before, step-00000003"
    ):
        train(toy_config)


def test_overrides_of_the_preset(toy: dict[str, Any]) -> None:
    model, _ = architecture(TrainConfig(**toy, image_size=16, channels=3, num_classes=0))
    assert (model.image_size, model.in_channels, model.out_channels) == (16, 3, 3)
    assert model.num_classes is None and not model.null_label
    assert architecture(TrainConfig(**toy, num_classes=7))[0].num_classes == 7


BAD = {
    "steps": ({"steps": 0}, "steps must be at least 1"),
    "lr": ({"lr": -1.0}, "lr must be a positive number"),
    "lr-nan": ({"lr": math.nan}, "lr must be a positive number"),
    "ema": ({"ema": (0.9, 1.0)}, "ema must be from 0 to below 1"),
    "same-ema": ({"ema": (0.9, 0.9)}, "different decays"),
    "five-emas": ({"ema": (0.1, 0.2, 0.3, 0.4, 0.5)}, "one to 4"),
    "no-ema": ({"ema": ()}, "one to 4"),
    "microbatch": ({"microbatch": -1}, "microbatch must be at least 0"),
    "label_dropout": ({"label_dropout": 1.5}, "label_dropout must be"),
    "channels": ({"channels": 2}, "channels must be 1"),
    "preset": ({"preset": "adm-65"}, "unknown preset 'adm-65'; known: .*adm-64"),
    "seed": ({"seed": 1 << 32}, "seed must be below"),
    "clean-denoiser": ({"noised": False}, "only a classifier"),
    "small-size": ({"small_size": 4}, "small_size is an upsampler's option, and this model enlarges nothing"),
    "low-res-noise": ({"low_res_noise": 0.1}, "low_res_noise is an upsampler's option"),
    "low-res-noise-negative": ({"low_res_noise": -0.1}, "low_res_noise must be a number of at least 0"),
    "no-classes": ({"preset": "adm-64-classifier", "num_classes": 0}, "a classifier needs classes"),
    "classifier-loss": ({"preset": "adm-64-classifier", "loss": "kl"}, "trained by cross entropy"),
    "upsampler-size": ({"preset": "adm-64-256", "small_size": 256}, "below the image size, 256, got 256"),
    "preset-file": ({"preset": "nowhere.json"}, "cannot read nowhere.json"),
    "size": ({"preset": "adm-64", "image_size": 65}, "cannot be halved"),
    "device": ({"device": "quantum"}, "device 'quantum' cannot be used"),
    "loss": ({"loss": "hybrid"}, "learned variance"),
    "out": ({"out": Path("/dev/null/run")}, "cannot write to /dev/null/run"),
    "data": ({"data": Path("nowhere")}, "no data at nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_told_in_a_sentence(toy: dict[str, Any], name: str) -> None:
    options, sentence = BAD[name]
    with pytest.raises(FastdiffError, match=sentence):
        train(TrainConfig(**{**toy, "steps": 1, **options}))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot read"),
        ("[" * 100_000, "cannot read .*toy.json: it is nested too deeply"),
        ("[1]", "must hold"),
        ('{"model": {"depth": 3}}', "options of UNetConfig are image_size"),
        ('{"model": {"channel_mult": []}}', "channel_mult must name at least one level"),
        ('{"model": {"image_size": 8, "channel_mult": [1]}, "diffusion": {"schedule": "x"}}', "schedule"),
    ],
)
def test_bad_preset_files(toy: dict[str, Any], content: str, sentence: str) -> None:
    Path(toy["preset"]).write_text(content)
    with pytest.raises(FastdiffError, match=sentence):
        architecture(TrainConfig(**toy))
