"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastdiff.errors import FastdiffError
from fastdiff.files import atomic_path


def test_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == tmp_path  # a rename is atomic within one file system only
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
    finally:
        os.umask(before)
    assert (tmp_path / "result").stat().st_mode & 0o777 == 0o640


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
