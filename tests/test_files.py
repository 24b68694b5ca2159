"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff.errors import FastdiffError
from fastdiff.files import DamagedFile, atomic_path, locked, open_tensors, parse_json, write_tensors


def test_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent.parent == tmp_path  # a rename is atomic within one file system only
    assert target.read_text() == "half"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_file_and_no_rest(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(stop), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise stop
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "result"):
            pass
        write_tensors(tmp_path / "tensors", TENSORS, {})  # by way of a private file of safetensors'
    finally:
        os.umask(before)
    for name in ("result", "tensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "place",
    ["missing/result", "file/result", "folder"],
    ids=["missing-folder", "below-a-file", "a-folder-in-its-place"],
)
def test_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(FastdiffError, match=f"cannot write .*{place}: "), atomic_path(tmp_path / place):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(FastdiffError, match=r"cannot write .*result: No space left on device"),
        atomic_path(tmp_path / "result"),
    ):
        raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())


def test_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, rename, folder: in this order, so that a power cut leaves the old file or the new one."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        done.append("folder" if name == tmp_path.name else "file")
        fsync(handle)

    def rename(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    with atomic_path(tmp_path / "result"):
        pass
    assert done == ["file", "rename", "folder"]


def test_only_one_run_has_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        with (
            pytest.raises(
                FastdiffError, match=rf"in use by another run \(process {os.getpid()}\); wait for it"
            ),
            locked(tmp_path),
        ):
            pass
        other = "import sys, pathlib, fastdiff.files as f\nwith f.locked(pathlib.Path(sys.argv[1])): pass"
        ended = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True)
        assert ended.returncode and f"(process {os.getpid()})" in ended.stderr
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


def test_file_systems_without_locks_and_synced_folders(tmp_path: Path, monkeypatch, caplog) -> None:
    import fcntl

    fsync = os.fsync

    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def no_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(os, "fsync", no_folders)
    with locked(tmp_path), atomic_path(tmp_path / "result") as path:
        path.write_text("whole")
    assert (tmp_path / "result").read_text() == "whole" and f"{tmp_path} has no locks" in caplog.text


def test_a_lock_of_a_killed_process_is_none(tmp_path: Path) -> None:
    dying = (
        "import os, sys, pathlib, fastdiff.files as f\n"
        "with f.locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", dying, str(tmp_path)]).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with locked(tmp_path):
        pass


def test_a_folder_that_vanishes_while_it_is_locked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder):
        (folder / ".lock").unlink()
        folder.rmdir()
    with pytest.raises(FastdiffError, match="cannot write .*run/.lock: No such file"), locked(folder):
        pass


@pytest.mark.parametrize(
    "text", ["[" * 100_000, b"\xff", "{", "1" * 5000], ids=["deep", "bytes", "half", "long"]
)
def test_json_from_outside(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


TENSORS = {
    "a": torch.arange(64.0).reshape(8, 8),
    "b": torch.tensor(7.0, dtype=torch.bfloat16),
    "c": torch.ones(5, dtype=torch.int64),
    "d": torch.zeros(0),
}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as file:
        assert file.metadata == {"fastdiff.x": '{"x": 1}'}
        return {name: file.read(name) for name in file.names}


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"fastdiff.x": '{"x": 1}'})
    found, plain = read_all(path), load_file(path)
    assert found.keys() == plain.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert torch.equal(plain[name], tensor)  # other programs read it too


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    """In the header, in its names and numbers, and in the tensors; one bit of each byte in turn."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"fastdiff.x": '{"x": 1}'})
    whole = path.read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        with pytest.raises(DamagedFile):
            read_all(path)


@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_zeros_and_cuts_are_seen(tmp_path: Path, part: float) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"fastdiff.x": '{"x": 1}'})
    whole = path.read_bytes()
    kept = int(part * len(whole))
    for content in (whole[:kept], whole[:kept] + bytes(len(whole) - kept)):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match="is damaged|is broken or no safetensors file"):
            read_all(path)


def test_files_of_other_programs_have_no_checksums(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"fastdiff.x": '{"x": 1}'})
    assert read_all(tmp_path / "x.safetensors").keys() == TENSORS.keys()


def test_checksums_are_of_zlib(tmp_path: Path) -> None:
    """The format, so that what is written today can be read later."""
    import zlib

    path = tmp_path / "x.safetensors"
    write_tensors(path, {"c": TENSORS["c"]}, {})
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    stored = json.loads(header["__metadata__"]["fastdiff.tensors"])
    assert stored["crc32"]["c"] == zlib.crc32(b"c torch.int64 [5]" + struct.pack("<5q", *[1] * 5))
