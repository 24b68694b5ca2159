"""--loss-weighting: what is trained, what the log and the sampler of times see, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.cli import main
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.loop import Trainer


def test_the_command_line_weights_the_loss(toy: dict[str, Any], tmp_path: Path) -> None:
    """The first step's loss, before any weight has moved: the mean over the batch of w_t times the plain one."""
    pytest.importorskip("tyro", reason="tyro is not installed")
    given = ["--data", str(toy["data"]), "--preset", toy["preset"], "--batch-size", "8", "--steps", "1"]
    options = ["--loss-weighting", "min-snr", "--min-snr-gamma", "2", "--log-every", "1", "--no-progress"]
    assert main(["train", *given, *options, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "log.jsonl").read_text())["loss"]

    trainer = Trainer(TrainConfig(**toy))
    batch = trainer._batches.draw(0, trainer.state.times)
    plain = trainer.update._backward(batch)[:, 0]
    abar = GaussianDiffusion(trainer.state.model.diffusion).alphas_bar[batch.t]
    snr = abar / (1 - abar)
    assert found == pytest.approx(
        (plain * snr.clamp(max=2) / (snr + 1)).mean().item(), rel=1e-4
    )  # predicts v


def test_importance_sampling_sees_the_weighted_loss(toy: dict[str, Any]) -> None:
    """As guided-diffusion's loop tells its sampler the loss that is trained, before the weight 1 / (T p_t)."""
    seen = []
    trainer = Trainer(TrainConfig(**toy, timesteps="loss-second-moment", loss_weighting="p2"))
    trainer.state.times.update = lambda t, loss: seen.append((t, loss))  # pyright: ignore
    batch = trainer._batches.draw(0, trainer.state.times)
    expected = trainer.update._backward(batch)[:, 0]
    trainer.state.optimizer.zero_grad()
    trainer.update()
    torch.testing.assert_close(seen[0][1], expected.double())
    assert seen[0][0].tolist() == batch.t.tolist()


BAD = {
    "kl": ({"loss": "kl"}, "is of the squared error, and loss 'kl' has none"),
    "classifier": ({"preset": "adm-64-classifier"}, "leave out --loss-weighting"),
    "gamma": ({"min_snr_gamma": -1.0}, "min_snr_gamma must be a positive number, got -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_weightings_that_make_no_sense_are_refused(toy: dict[str, Any], name: str) -> None:
    options, sentence = BAD[name]
    with pytest.raises(FastdiffError, match=sentence):
        train(TrainConfig(**{**toy, "steps": 1, "loss_weighting": "min-snr", **options}))


def test_checkpoints_from_before_an_option_count_as_its_default(toy: dict[str, Any]) -> None:
    trainer = Trainer(TrainConfig(**toy, steps=2))
    trainer._identity.pop("loss_weighting")
    trainer.run()
    assert train(TrainConfig(**toy, steps=3)).step == 3
    with pytest.raises(FastdiffError, match="trained with loss_weighting = 'none', now 'p2' is asked for"):
        train(TrainConfig(**toy, steps=4, loss_weighting="p2"))
