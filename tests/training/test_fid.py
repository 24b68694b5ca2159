"""FID during training: the numbers of fastdiff evaluate, the best so far, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import fastdiff
from fastdiff.cli import main
from fastdiff.data.images import ImageData
from fastdiff.errors import FastdiffError
from fastdiff.evaluation.features import load_features
from fastdiff.evaluation.frechet import FrechetDistance
from fastdiff.training import TrainConfig, train
from fastdiff.training.distributed import Processes
from fastdiff.training.fid import HeldOutFid
from fastdiff.training.loop import Trainer

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
CPU = torch.device("cpu")


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A network of features of 8 x 8 grey images."""
    model = tiny.build(tiny.GRAY_CLASSIFIER)
    fastdiff.save(model, tmp_path / "features.safetensors")
    return str(tmp_path / "features.safetensors")


@pytest.fixture
def options(toy: dict[str, Any], classifier: str) -> dict[str, Any]:
    more = {"fid_every": 2, "fid_samples": 12, "fid_features": classifier, "val_every": 1000}
    return {**toy, **more, "val_data": toy["data"], "checkpoint_every": 2, "log_every": 100}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_is_the_distance_that_evaluate_computes(options: dict[str, Any]) -> None:
    """By hand: 12 samples of the model that was saved, with classes spread over the data, against all 40 images."""
    train(TrainConfig(**options, steps=2))
    held = np.load(options["data"])
    features = load_features(options["fid_features"])
    model = fastdiff.load(options["out"] / "model.safetensors")
    classes = torch.from_numpy(held["labels"])[torch.linspace(0, 39, 12).round().long()]
    samples = fastdiff.sample(model, 12, classes=classes, seed=0, sampler="dpmpp", steps=20, progress=False)
    distance = FrechetDistance()
    distance.update(features(torch.from_numpy(held["images"])[:, None]).pool, is_reference=True)
    distance.update(features(fastdiff.to_uint8(samples).movedim(-1, 1)).pool)
    found = lines(options["out"])
    assert found == [{"step": 2, "fid": found[0]["fid"], "best_fid": found[0]["fid"], "best_fid_step": 2}]
    assert found[0]["fid"] == pytest.approx(distance.compute(), rel=1e-3)


def test_the_best_is_kept_by_a_run_that_goes_on(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FID of each measurement, one of them made and lost with the steps after the last checkpoint."""
    values = iter([5.0, 3.0, 1.0, 4.0, 2.0])
    monkeypatch.setattr(HeldOutFid, "measure", lambda self, model: next(values))
    train(TrainConfig(**options, steps=6))
    for name in ("checkpoints/step-00000006.safetensors", "model.safetensors"):
        (options["out"] / name).unlink()
    train(TrainConfig(**options, steps=8))
    found = [
        (line["step"], line["fid"], line["best_fid"], line["best_fid_step"]) for line in lines(options["out"])
    ]
    assert found == [(2, 5, 5, 2), (4, 3, 3, 4), (6, 4, 3, 4), (8, 2, 2, 8)]


def test_the_reference_is_looked_at_once(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(TrainConfig(**options, steps=1))
    fid, looked = trainer._fid, []
    held = fid._held
    monkeypatch.setattr(fid, "_held", lambda rows: looked.append(len(rows)) or held(rows))
    first, second = fid.measure(trainer.state.averaged()), fid.measure(trainer.state.averaged())
    assert looked == [40] and first == second


def test_measuring_changes_nothing_of_the_run(options: dict[str, Any], tmp_path: Path) -> None:
    with_fid = train(TrainConfig(**options, steps=5)).model
    without = train(TrainConfig(**{**options, "out": tmp_path / "other", "fid_every": 0}, steps=5)).model
    assert with_fid is not None and without is not None
    expected, found = fastdiff.load(without).state_dict(), fastdiff.load(with_fid).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("count", [2, 5])
def test_processes_share_the_work(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The features that each of several makes, put together, are those of one."""
    trainer = Trainer(TrainConfig(**options, steps=1))
    model, config = trainer.state.averaged(), trainer.state.model.config
    data = trainer._validation.data  # pyright: ignore

    def features(processes: Processes) -> list[torch.Tensor]:
        fid = HeldOutFid(trainer.config, config, data, processes, CPU)
        return [fid._features_of(12, lambda rows: fid._sampled(model, rows)), fid._features_of(40, fid._held)]

    whole = features(Processes())
    monkeypatch.setattr(Processes, "gather", lambda self, rows: rows)
    shares = [features(Processes(rank, count)) for rank in range(count)]
    for i, expected in enumerate(whole):
        found = torch.cat([share[i] for share in shares])[: len(expected)]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_command_line(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    data = str(options["data"])
    given = ["--data", data, "--val-data", data, "--preset", options["preset"], "--out", str(options["out"])]
    given += ["--fid-every", "2", "--fid-samples", "8", "--fid-features", options["fid_features"]]
    given += ["--batch-size", "8", "--steps", "4", "--device", "cpu", "--no-progress", "--track", "csv"]
    assert main(["train", *given]) == 0
    found = [line for line in lines(options["out"]) if "fid" in line]
    assert [line["step"] for line in found] == [2, 4] and all(line["fid"] > 0 for line in found)
    assert "fid,best_fid,best_fid_step" in (options["out"] / "log.csv").read_text().splitlines()[0]
    assert "FID by 8 images in 32 features says more of their number" in caplog.text


def test_what_has_no_fid_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(FastdiffError, match="give --val-data with --fid-every"):
        train(TrainConfig(**{**options, "val_data": None}, steps=1))
    with pytest.raises(FastdiffError, match="fashion-mnist-classifier looks at grey images of 32 x 32"):
        train(TrainConfig(**{**options, "fid_features": None}, steps=1))
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(FastdiffError, match="only a denoiser has an FID during training"):
        HeldOutFid(TrainConfig(**options), tiny.GRAY_CLASSIFIER, data, Processes(), CPU)
    assert not options["out"].exists()
