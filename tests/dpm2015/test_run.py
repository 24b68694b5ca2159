"""A run that is killed and started again is bit for bit the run that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.dpm2015 import MultiScaleConfig, Recipe, Run, Training, dead_leaves
from fastdiff.dpm2015.experiments import Trained, heartbeat, images, swiss_roll
from fastdiff.dpm2015.run import CHECKPOINT, Stopped
from fastdiff.errors import FastdiffError
from fastdiff.files import locked, open_tensors

Watch = Callable[[Training], None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _roll(**more: Any) -> Trained:
    return swiss_roll(Recipe(12, 20), steps=8, units=20, first_beta=1e-3, per_step=4, **more)


def _beat(**more: Any) -> Trained:
    return heartbeat(Recipe(12, 20, 1e-2, early=0.7), steps=30, per_step=4, **more)


def _leaves(**more: Any) -> Trained:
    some = dead_leaves(40, size=8)
    config = MultiScaleConfig(width=8, layers=1, scales=2, pointwise=8)
    return images(some[:30], some[30:], Recipe(12, 4, 1e-2), config, steps=12, crop=4, **more)


EXPERIMENTS = {"swiss roll, learned schedule": _roll, "heartbeat": _beat, "images": _leaves}


def _run(out: Path, **more: Any) -> Run:
    return Run(out, {"--lr": 0.001}, **{"checkpoint_every": 4, "val_every": 3, **more})


def _log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _same(a: Trained, b: Trained) -> bool:
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return (
        a.bound.k == b.bound.k
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and torch.equal(a.diffusion.alphas_bar, b.diffusion.alphas_bar)
    )


def _at(iteration: int, what: Callable[[], None]) -> Watch:
    def watch(training: Training) -> None:
        if training.iteration == iteration:
            what()

    return watch


class _Killed(Exception):
    pass


def _kill() -> None:
    raise _Killed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_continues_bit_for_bit(tmp_path: Path, name: str) -> None:
    train = EXPERIMENTS[name]
    alone, whole = train(), train(run=_run(tmp_path / "whole"))
    assert _same(alone, whole)  # a folder changes nothing
    with pytest.raises(_Killed):
        train(run=_run(tmp_path / "killed"), watch=_at(7, _kill))
    seen: list[int] = []
    resumed = train(run=_run(tmp_path / "killed"), watch=lambda training: seen.append(training.iteration))
    assert seen == list(range(4, 13))  # from the last checkpoint, without what the kill lost
    assert _same(whole, resumed)
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")
    assert [line["step"] for line in _log(tmp_path / "whole")] == [3, 6, 9, 12]
    with (
        open_tensors(tmp_path / "whole" / CHECKPOINT) as a,
        open_tensors(tmp_path / "killed" / CHECKPOINT) as b,
    ):
        assert a.names == b.names and all(torch.equal(a.read(n), b.read(n)) for n in a.names)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = _beat(run=_run(tmp_path))
    seen: list[int] = []
    again = _beat(run=_run(tmp_path), watch=lambda training: seen.append(training.iteration))
    assert seen == [12] and _same(first, again)
    with pytest.raises(FastdiffError, match="holds an earlier run; resume it or give another --out"):
        _beat(run=_run(tmp_path, resume="never"))
    assert seen == [12] and _same(first, _beat(run=_run(tmp_path)))
    assert [line["step"] for line in _log(tmp_path)] == [3, 6, 9, 12]


def test_ctrl_c_writes_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        Stopped, match="stopped after iteration 6 of 12; the same command continues from there"
    ):
        _beat(run=_run(tmp_path), watch=_at(5, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    seen: list[int] = []
    assert _same(_beat(), _beat(run=_run(tmp_path), watch=lambda training: seen.append(training.iteration)))
    assert seen[0] == 6


def test_other_options_are_refused(tmp_path: Path) -> None:
    _beat(run=_run(tmp_path))
    other = replace(_run(tmp_path), options={"--lr": 0.01, "--steps": 30})
    with pytest.raises(FastdiffError) as refused:
        _beat(run=other)
    assert str(refused.value) == (
        f"{tmp_path} holds a run with --lr = 0.001, --steps = None, now --lr = 0.01, --steps = 30 is asked for; "
        "give another --out"
    )
    assert _same(_beat(), _beat(run=_run(tmp_path)))  # the refusal has changed nothing


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "broken"),
        (lambda file: file.write_bytes(file.read_bytes()[:-4] + b"oops"), "does not have its checksum"),
        (lambda file: _write_other(file), "is no whole checkpoint of this experiment"),
        (lambda file: file.unlink(), "holds the log of another program's run; give another --out"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    _beat(run=_run(tmp_path))
    damage(tmp_path / CHECKPOINT)
    with pytest.raises(FastdiffError, match=words):
        _beat(run=_run(tmp_path))


def _write_other(file: Path) -> None:
    other = file.parent / "other"
    _roll(run=_run(other))
    shutil.copy(other / CHECKPOINT, file)


def test_divergence_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    some = dead_leaves(40, size=8)
    config = MultiScaleConfig(width=8, layers=1, scales=2, pointwise=8)
    with pytest.raises(FastdiffError, match="training stopped; try a smaller lr"):
        images(some, some, Recipe(60, 4, 1e30), config, steps=12, run=_run(tmp_path, checkpoint_every=1))
    with open_tensors(tmp_path / CHECKPOINT) as file:
        assert json.loads(file.metadata["fastdiff.dpm2015"])["iteration"] < 60


def test_one_run_a_folder_and_sound_numbers(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(FastdiffError, match="in use by another run"):
        _beat(run=_run(tmp_path))
    for name in ("checkpoint_every", "val_every"):
        with pytest.raises(FastdiffError, match=f"{name} must be at least 1, got 0"):
            _run(tmp_path, **{name: 0})
