"""Trackers hold what log.jsonl holds, also after a resumption."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from fastdiff.cli import main
from fastdiff.errors import FastdiffError
from fastdiff.training import TrainConfig, train
from fastdiff.training.log import Log
from fastdiff.training.trackers import tag


def test_tensorboard_reads_what_was_logged(toy: dict[str, Any]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {
        **toy,
        "track": ("tensorboard",),
        "sample_every": 3,
        "checkpoint_every": 2,
        "val_data": toy["data"],
    }
    options |= {"val_every": 3, "val_batches": 1}
    train(TrainConfig(**options, steps=4))
    log = Log(toy["out"], ["tensorboard"])  # a run that is killed after two steps that no checkpoint has
    log.resume(4)
    for step in (5, 6):
        log.write({"step": step, "loss": 1e9})
    log.close()
    train(TrainConfig(**options, steps=6))

    lines = [json.loads(line) for line in (toy["out"] / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(toy["out"] / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for name in ("loss", "lr", "val_loss"):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert {event.step: event.value for event in events.Scalars(tag(name))} == pytest.approx(expected)
        assert len(events.Scalars(tag(name))) == len(expected)
    assert {"train/grad_norm", "train/images_per_second"} <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("samples")] == [3, 4, 6]
    assert events.Images("samples")[0].encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_told_in_a_sentence(
    toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FastdiffError, match=f"--track {name} needs .*: pip install {name}, or leave it out"):
        train(TrainConfig(**toy, track=(name,), steps=1))  # pyright: ignore
    assert not toy["out"].exists()


def test_the_old_option_is_told_its_new_form(toy: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tyro", reason="tyro is not installed")
    assert main(["train", "--data", str(toy["data"]), "--out", str(toy["out"]), "--tensorboard"]) == 2
    assert "unknown option --tensorboard; it is --track tensorboard now" in capsys.readouterr().err


def test_csv_has_the_lines_of_the_log(toy: dict[str, Any]) -> None:
    """The first run ends without a checkpoint of its last steps, in the middle of a row."""
    pytest.importorskip("tyro", reason="tyro is not installed")
    given = [
        "--data",
        str(toy["data"]),
        "--preset",
        toy["preset"],
        "--out",
        str(toy["out"]),
        "--batch-size",
        "8",
    ]
    given += ["--log-every", "1", "--val-data", str(toy["data"]), "--val-every", "2", "--val-batches", "1"]
    given += ["--device", "cpu", "--no-progress", "--track", "csv"]
    assert main(["train", *given, "--steps", "3"]) == 0
    table = toy["out"] / "log.csv"
    with table.open("a") as file:
        file.write("4,1000000000,,,,\n5,1000")
    assert main(["train", *given, "--steps", "5"]) == 0

    lines = [json.loads(line) for line in (toy["out"] / "log.jsonl").read_text().splitlines()]
    with table.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == lines
    assert table.read_text().splitlines()[0].split(",")[:4] == ["step", "loss", "grad_norm", "lr"]
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 4]


class FakeWandb(types.ModuleType):
    """A stand-in for the package, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.runs.append(options)
        return types.SimpleNamespace(
            id=options["id"] or f"new-{len(self.runs)}", log=self._log, finish=self._finish
        )

    def Image(self, picture: Image.Image) -> tuple[str, tuple[int, int]]:
        return "image", picture.size

    def _log(self, numbers: dict[str, Any], step: int) -> None:
        self.logged.append((step, numbers))

    def _finish(self) -> None:
        self.finished += 1


def test_wandb_gets_numbers_pictures_and_the_same_run_again(
    toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    options = {**toy, "track": ("wandb",), "sample_every": 2, "val_data": toy["data"], "val_every": 2}
    for steps in (2, 3):
        train(TrainConfig(**options, val_batches=1, steps=steps))
    first, second = wandb.runs
    assert (first["project"], first["name"], first["id"], first["resume"]) == ("fastdiff", "run", None, None)
    assert first["config"]["lr"] == 1e-3 and first["config"]["data"] == str(toy["data"])
    assert (second["id"], second["resume"]) == ("new-1", "allow")
    assert wandb.finished == 2

    lines = [json.loads(line) for line in (toy["out"] / "log.jsonl").read_text().splitlines()]
    for name, key in (("loss", "train/loss"), ("val_loss", "val/loss")):
        found = [(step, numbers[key]) for step, numbers in wandb.logged if key in numbers]
        assert found == [(line["step"], line[name]) for line in lines if name in line]
    (step, numbers), *_ = [item for item in wandb.logged if "samples" in item[1]]
    with Image.open(toy["out"] / "samples" / "step-00000002.png") as picture:
        assert (step, numbers) == (2, {"samples": ("image", picture.size)})


def test_wandb_that_cannot_start_is_one_sentence(
    toy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()

    def init(**_: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(FastdiffError, match=r"cannot be started \(.*api_key.*\); .* WANDB_MODE=offline"):
        train(TrainConfig(**toy, track=("wandb",), steps=1))


def test_a_tracker_of_ones_own(toy: dict[str, Any]) -> None:
    class Mine:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def log(self, step: int, numbers: Mapping[str, float | None]) -> None:
            self.seen.append((step, numbers["loss"]))

        def picture(self, step: int, name: str, image: Image.Image) -> None:
            self.seen.append((step, name))

        def close(self) -> None:
            self.seen.append("closed")

    mine = Mine()
    train(TrainConfig(**{**toy, "sample_every": 2}, steps=2), trackers=[mine])
    losses = [json.loads(line)["loss"] for line in (toy["out"] / "log.jsonl").read_text().splitlines()]
    assert mine.seen == [(1, losses[0]), (2, losses[1]), (2, "samples"), "closed"]


def test_numbers_are_in_groups() -> None:
    names = ("loss", "val_loss", "val_acc@1", "fid", "best_fid", "lr")
    expected = ["train/loss", "val/loss", "val/acc@1", "val/fid", "val/best_fid", "train/lr"]
    assert [tag(name) for name in names] == expected


def test_speed_is_logged(toy: dict[str, Any]) -> None:
    train(TrainConfig(**{**toy, "log_every": 20}, steps=40))
    first, second = (json.loads(line) for line in (toy["out"] / "log.jsonl").read_text().splitlines())
    assert second["images_per_second"] == pytest.approx(160 / (second["seconds"] - first["seconds"]), rel=0.5)
