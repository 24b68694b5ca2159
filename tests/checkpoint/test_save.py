"""A save that cannot succeed says so in one line, leaves no debris and keeps the file that was there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

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
    for dtype in (torch.int8, "float16"):
        _refused(lambda d=dtype: fastdiff.save(model, tmp_path / "a.safetensors", dtype=d), "floating-point")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, SafetensorError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_failure_leaves_the_old_file(tmp_path: Path, model, monkeypatch, error) -> None:
    file = tmp_path / "model.safetensors"
    fastdiff.save(model, file)
    before = file.read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device") if error is OSError else error("No space left")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            fastdiff.save(model, file)
    else:
        _refused(lambda: fastdiff.save(model, file), "No space left")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes cannot be limited")
def test_no_room_left(tmp_path: Path, model) -> None:
    """What the safetensors library really says when the system lets it write no more."""
    fastdiff.save(model, tmp_path / "model.safetensors")
    program = (
        "import resource, sys, fastdiff; model = fastdiff.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: fastdiff.save(model, sys.argv[2])\n"
        "except fastdiff.FastdiffError as error: print(error)"
    )
    files = [str(tmp_path / name) for name in ("model.safetensors", "copy.safetensors")]
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {files[1]}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
