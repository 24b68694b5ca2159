"""``fastdiff info``, ``fastdiff presets`` and ``--help``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff
from fastdiff.ops import _library
from fastdiff.ops._op import OPS


def test_info_tells_versions_devices_and_every_ops_choice(command) -> None:
    ended = command("info")
    assert ended.code == 0 and not ended.err
    for word in (f"fastdiff     {fastdiff.__version__}", "torch        ", "cpu (", "processor    "):
        assert word in ended.out
    for name in OPS:
        assert f"  {name} " in ended.out
    assert f"used         {_library.instruction_set() or 'none: '}" in ended.out


def test_info_says_why_there_are_no_kernels(tmp_path: Path) -> None:
    """In a process of its own, since libraries are opened once."""
    done = subprocess.run(
        [sys.executable, "-m", "fastdiff", "info"],
        env={**os.environ, "FASTDIFF_LIBRARIES": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = done.stdout
    assert "compiled     none" in told
    assert "operators    the compiled operators are not built" in told
    assert "used         none: the compiled operators are not built" in told
    choices = [line.split()[1] for line in told.partition("ops on cpu\n")[2].splitlines() if line[2] != " "]
    assert set(choices) == {"reference"}


def test_info_tells_the_rate_of_bfloat16(command) -> None:
    told = command("info").out
    assert "bfloat16     products: " in told and "module       by " in told


def test_info_says_what_was_measured_on_a_gpu(monkeypatch) -> None:
    from fastdiff.cli.installation import measurements
    from fastdiff.ops import _measured

    ops = {"attention": {"bfloat16 D64 T1024": "eager:cudnn"}}
    found = {"date": "2026-01-02", "torch": "2.11.0", "triton": "3.6.0", "ops": ops}
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA Made-up")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(_measured, "entry", lambda index: found)
    assert measurements(0) == [
        "measured on NVIDIA Made-up, 2026-01-02 (torch 2.11.0, triton 3.6.0):",
        "  attention, bfloat16 D64 T1024: eager:cudnn",
    ]
    monkeypatch.setattr(_measured, "entry", lambda index: None)
    nothing, default = measurements(0)
    assert nothing.startswith("no measurements of NVIDIA Made-up") and "PyTorch's own" in default


def test_presets_are_listed_with_where_their_weights_are(command, monkeypatch) -> None:
    monkeypatch.setattr("fastdiff.checkpoint.bundled", lambda: ["iddpm-cifar10"])
    title, *lines = command("presets").out.split("\n\n")[0].splitlines()
    assert title.split() == ["name", "image", "parameters", "weights", "GMACs", "a", "step", "checkpoint"]
    assert [line.split()[0] for line in lines] == list(fastdiff.PRESETS)
    assert [line.split()[0] for line in lines if "bundled" in line] == ["iddpm-cifar10"]
    assert any("fastdiff fetch adm-128 " in line for line in lines)


@pytest.mark.parametrize("argv", [["--help"], ["sample", "--help"], ["train", "-h"]], ids=" ".join)
def test_help_is_no_error(command, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*argv)
    assert not stop.value.code
