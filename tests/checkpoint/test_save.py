"""A save that cannot succeed says so in one line, leaves no debris and keeps the file that was there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff.errors import FastdiffError


def _refused(call, fragment: str) -> None:
    with pytest.raises(FastdiffError) as caught:
        call()
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["missing/model.safetensors", "file/model.safetensors"])
def test_unwritable_target(tmp_path: Path, model, target: str) -> None:
    (tmp_path / "file").write_text("in the way")
    _refused(lambda: fastdiff.save(model, tmp_path / target), f"cannot write {tmp_path / target}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_target_is_a_folder(tmp_path: Path, model) -> None:
    (tmp_path / "model.safetensors").mkdir()
    _refused(lambda: fastdiff.save(model, tmp_path / "model.safetensors"), "cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_wrong_kind(tmp_path: Path, model) -> None:
    _refused(lambda: fastdiff.save(model, tmp_path / "model.pt"), ".safetensors files")
    _refused(lambda: fastdiff.save(torch.nn.Linear(1, 1), tmp_path / "a.safetensors"), "Linear")
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_file(tmp_path: Path, model, monkeypatch) -> None:
    file = tmp_path / "model.safetensors"
    fastdiff.save(model, file)
    before = file.read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("fastdiff.checkpoint.save"), "save_file", fail)
    _refused(lambda: fastdiff.save(model, file), "No space left")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
