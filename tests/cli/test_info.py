"""``fastdiff info``, ``fastdiff presets`` and ``--help``."""

from __future__ import annotations

import pytest

import fastdiff
from fastdiff.ops import _native
from fastdiff.ops._op import OPS


def test_info_tells_versions_devices_and_every_ops_choice(command) -> None:
    ended = command("info")
    assert ended.code == 0 and not ended.err
    for word in (f"fastdiff     {fastdiff.__version__}", "torch        ", "cpu (", "processor    "):
        assert word in ended.out
    for name in OPS:
        assert f"  {name} " in ended.out
    assert f"used         {_native.instruction_set() or 'none: '}" in ended.out


def test_info_says_why_there_are_no_kernels(command, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(_native, "LIBRARY_DIR", tmp_path)
    for op in OPS.values():
        monkeypatch.setattr(op, "_kernels", {})
    _native._load.cache_clear()
    try:
        told = command("info").out
    finally:
        monkeypatch.undo()
        _native._load.cache_clear()
    assert "compiled     none" in told
    assert "used         none: the CPU library is not built" in told
    choices = [line.split()[1] for line in told.partition("ops on cpu\n")[2].splitlines() if line[2] != " "]
    assert set(choices) == {"reference"}


def test_presets_are_listed_with_what_is_bundled(command, monkeypatch) -> None:
    monkeypatch.setattr("fastdiff.cli.presets.bundled", lambda: ["adm-64"])
    lines = command("presets").out.splitlines()
    assert [line.split()[0] for line in lines] == list(fastdiff.PRESETS)
    assert [line.split()[0] for line in lines if "bundled" in line] == ["adm-64"]
    assert any("128x128_diffusion.pt" in line for line in lines)


@pytest.mark.parametrize("argv", [["--help"], ["sample", "--help"], ["train", "-h"]], ids=" ".join)
def test_help_is_no_error(command, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*argv)
    assert not stop.value.code
