"""A run's checkpoints and log: damage is seen, a folder has one run, and each checkpoint is a model as well."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.files import locked
from fastdiff.training import TrainConfig, train
from fastdiff.training.log import Log
from fastdiff.training.loop import Trainer
from fastdiff.training.state import checkpoints
from fastdiff.training.update import Update

RATES = (0.9, 0.99)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_files: Callable[[Path], None]) -> TrainConfig:
    """A run of four steps, with checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("trained")
    toy_files(folder)
    config = TrainConfig(
        data=folder / "toy.npz",
        preset=str(folder / "toy.json"),
        out=folder / "run",
        steps=4,
        batch_size=4,
        checkpoint_every=2,
        sample_every=0,
        device="cpu",
        log_every=1,
        ema=RATES,
        class_names=("left", "right"),
        progress=False,
    )
    train(config)
    return config


@pytest.fixture
def config(trained: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The same run in a folder of its own."""
    shutil.copytree(trained.out, tmp_path / "run")
    return dataclasses.replace(trained, out=tmp_path / "run")


def flip(content: bytearray) -> None:
    content[-5000] ^= 4


def zero_half(content: bytearray) -> None:
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)


def flip_the_step(content: bytearray) -> None:
    position = content.index(b'step\\": 4') + len(b'step\\": ')
    content[position : position + 1] = b"2"


@pytest.mark.parametrize("damage", [flip, zero_half, flip_the_step])
def test_damage_is_seen_and_the_one_before_named(config: TrainConfig, damage: Callable) -> None:
    last = checkpoints(config.out)[-1]
    content = bytearray(last.read_bytes())
    damage(content)
    last.write_bytes(content)
    more = dataclasses.replace(config, steps=5)
    with pytest.raises(
        FastdiffError, match="is damaged: .*; delete it to go on from the one before, step-00000002"
    ):
        train(more)
    if damage is not flip:  # what it flips is a moment, and a model has none
        with pytest.raises(FastdiffError, match="is damaged: "):
            fastdiff.load(last)
    last.unlink()
    assert train(more).step == 5


def test_the_only_one_is_damaged(config: TrainConfig) -> None:
    first, last = checkpoints(config.out)
    first.unlink()
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(FastdiffError, match="delete it to begin anew: it is the only one"):
        train(config)


@pytest.mark.parametrize("about", ["[" * 10_000, "[]", '{"layout": 2}', '{"layout": 2, "identity": 5}'])
def test_descriptions_of_other_programs(config: TrainConfig, about: str) -> None:
    last = checkpoints(config.out)[-1]
    save_file(load_file(last), last, metadata={"fastdiff.training": about})
    for call in (lambda: train(config), lambda: fastdiff.load(last)):
        with pytest.raises(FastdiffError, match=last.name) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_checkpoint_is_a_model(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    """By default its first average, which at the end of a run is model.safetensors."""
    last = checkpoints(config.out)[-1]
    models = ("model.safetensors", f"model-ema-{RATES[1]}.safetensors")
    first, second = (fastdiff.load(config.out / name) for name in models)
    found = fastdiff.load(last)
    assert f"{last} holds the weights ema-0.9, ema-0.99, raw: ema-0.9 are loaded" in caplog.text
    assert found.config == first.config and found.diffusion == first.diffusion
    assert found.class_names == ("left", "right")
    stored = load_file(last)
    raw = {n.removeprefix("model."): t for n, t in stored.items() if n.startswith("model.")}
    sets = {None: first, "ema": first, "0.9": first, "ema-0.99": second, "0.99": second}
    expected: dict[Any, dict[str, torch.Tensor]] = {k: dict(m.state_dict()) for k, m in sets.items()}
    for weights, tensors in {**expected, "raw": raw}.items():
        loaded = fastdiff.load(last, weights=weights).state_dict()
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors), weights
    with pytest.raises(FastdiffError, match="has no weights '0.5'; it holds ema-0.9, ema-0.99, raw"):
        fastdiff.load(last, weights="0.5")
    assert fastdiff.sample(found, 2, classes=[0, 1], steps=2, progress=False).shape == (2, 1, 8, 8)


def test_a_folder_has_one_run(config: TrainConfig) -> None:
    with (
        locked(config.out),
        pytest.raises(FastdiffError, match=f"{config.out} is in use by another run .*give another --out"),
    ):
        train(dataclasses.replace(config, steps=5))
    assert train(dataclasses.replace(config, steps=5)).step == 5
    assert not (config.out / ".lock").exists()


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_line_that_cannot_be_written(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """The disk is full, or somebody removed the folder: one sentence, and the run can be taken up again."""
    more = dataclasses.replace(config, steps=6)
    trainer, step = Trainer(more), Update.__call__
    if kind == "full":
        (config.out / "log.jsonl").unlink()
        (config.out / "log.jsonl").symlink_to("/dev/full")
        monkeypatch.setattr(Log, "_lines", lambda self: [])
        reason = "No space left on device"
    else:

        def remove(self: Update) -> torch.Tensor:
            shutil.rmtree(config.out, ignore_errors=True)
            return step(self)

        monkeypatch.setattr(Update, "__call__", remove)
        reason = "No such file or directory"
    with pytest.raises(FastdiffError, match=f"cannot write .*log.jsonl: {reason}"):
        trainer.run()
    monkeypatch.undo()
    if kind == "full":
        (config.out / "log.jsonl").unlink()
        assert train(more).step == 6
    else:
        assert not config.out.exists()


LINE = b'{"step": 1}\n'


@pytest.mark.parametrize(
    "broken",
    [b"[" * 100_000, b"{}", b"5", b"\xff\xfe", bytes(40), b'{"step": "x"}', b'{"step": null}'],
    ids=["deep", "nothing", "number", "bytes", "zeros", "word", "null"],
)
def test_lines_that_the_log_did_not_write(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(LINE + broken + b"\n" + LINE)
    with pytest.raises(
        FastdiffError, match='line 2 of .*log.jsonl is no JSON object with a "step"'
    ) as caught:
        Log(tmp_path).resume(5)
    assert "\n" not in str(caught.value)
    path.write_bytes(LINE + broken)  # half written, as a kill or a power cut leaves it
    Log(tmp_path).resume(5)
    assert path.read_bytes() == LINE


def test_a_full_disk_at_a_checkpoint(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff import files

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = [path.read_bytes() for path in checkpoints(config.out)]
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        FastdiffError, match="cannot write .*step-00000006.safetensors: No space left on device"
    ):
        train(dataclasses.replace(config, steps=6))
    assert [path.read_bytes() for path in checkpoints(config.out)] == before
    assert [path.name for path in (config.out / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_description_of_a_checkpoint(config: TrainConfig) -> None:
    """What other programs may read of it."""
    from safetensors import safe_open

    with safe_open(checkpoints(config.out)[-1], framework="pt") as file:
        about = json.loads((file.metadata() or {})["fastdiff.training"])
    assert about["step"] == 4 and about["class_names"] == ["left", "right"]
    assert about["crc32"].keys() == {"", *load_file(checkpoints(config.out)[-1])}


def test_loading_is_told_once(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fastdiff.load(config.out / "model.safetensors")
        fastdiff.load(checkpoints(config.out)[-1], weights="raw")
    assert not caplog.records  # there was no choice, or it was made
