"""TensorBoard's files hold what log.jsonl holds, also after a resumption."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.log import Log


def test_tensorboard_reads_what_was_logged(toy: dict[str, Any]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {**toy, "tensorboard": True, "sample_every": 3, "checkpoint_every": 2, "val_data": toy["data"]}
    options |= {"val_every": 3, "val_batches": 1}
    train(TrainConfig(**options, steps=4))
    log = Log(toy["out"], tensorboard=True)  # a run that is killed after two steps that no checkpoint has
    log.resume(4)
    for step in (5, 6):
        log.write({"step": step, "loss": 1e9})
    log.close()
    train(TrainConfig(**options, steps=6))

    lines = [json.loads(line) for line in (toy["out"] / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(toy["out"] / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for tag, name in (("train/loss", "loss"), ("train/lr", "lr"), ("val/loss", "val_loss")):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert {event.step: event.value for event in events.Scalars(tag)} == pytest.approx(expected)
        assert len(events.Scalars(tag)) == len(expected)
    assert {"train/grad_norm", "train/images_per_second"} <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("samples")] == [3, 6]
    assert events.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")


def test_a_missing_package_is_told_in_a_sentence(
    toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FastdiffError, match="pip install tensorboard"):
        train(TrainConfig(**toy, tensorboard=True, steps=1))
    assert not toy["out"].exists()


def test_speed_is_logged(toy: dict[str, Any]) -> None:
    train(TrainConfig(**{**toy, "log_every": 20}, steps=40))
    first, second = (json.loads(line) for line in (toy["out"] / "log.jsonl").read_text().splitlines())
    assert second["images_per_second"] == pytest.approx(160 / (second["seconds"] - first["seconds"]), rel=0.5)
