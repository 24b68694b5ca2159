"""Downloads from a server that breaks off, answers late, or sends something else."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import tiny
import torch
from file_server import FileServer

import fastdiff
from fastdiff.checkpoint import fetch as fetching
from fastdiff.checkpoint.fetch import fetch
from fastdiff.checkpoint.released import RELEASED, Released, cache, released
from fastdiff.errors import FastdiffError
from fastdiff.files import locked
from fastdiff.zoo import PRESETS, Preset


def _bytes(seed: int = 0, **changes: object) -> bytes:
    stream = io.BytesIO()
    torch.save(tiny.build(replace(tiny.GRAY, **changes), seed).state_dict(), stream)  # pyright: ignore
    return stream.getvalue()


CONTENT = _bytes()


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer(CONTENT)
    yield server
    server.close()


@pytest.fixture
def row(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Released:
    """A published checkpoint, of which nothing is known but where it is."""
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(fetching, "TIMEOUT", 0.3)
    monkeypatch.setattr(fetching, "_CHUNK", 1 << 12)
    monkeypatch.setitem(PRESETS, "tiny", Preset(tiny.GRAY, fastdiff.DiffusionConfig(), "tiny.pt"))
    monkeypatch.setitem(RELEASED, "tiny", Released("tiny", server.folder))
    return RELEASED["tiny"]


def _error(call: Callable[[], object], *parts: str) -> str:
    with pytest.raises(FastdiffError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


def _is_there_alone(row: Released) -> None:
    assert row.path.read_bytes() == CONTENT
    assert [path.name for path in cache().iterdir()] == ["tiny.pt"]


def test_a_file_is_loaded_by_its_names(row: Released, server: FileServer) -> None:
    _error(lambda: fastdiff.load("tiny"), "tiny.pt has not been downloaded", "fastdiff fetch tiny")
    compared = fetch(row)
    assert f"{len(CONTENT)} bytes" in compared and "names and shapes of tiny" in compared
    _is_there_alone(row)
    for name in ("tiny", "tiny.pt"):
        model = fastdiff.load(name)
        assert model.config == tiny.GRAY and model.diffusion == fastdiff.DiffusionConfig()
    expected = tiny.build(tiny.GRAY).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    fetch(row)
    assert server.asked == [None]  # the file that is there was checked, and nothing else was asked for


ENDINGS = {  # the server's plan, and the first byte of each request
    "served": ([], [0]),
    "dropped": (["drop"], [0, 1]),
    "dropped-often": (["drop"] * 6, [0, *[1] * 6]),
    "late": (["drop", "late", "late"], [0, 1, 1, 1]),
    "stalled": (["stall"], [0, 1]),
    "busy": ([503, 503, 429], [0, 0, 0, 0]),
    "refused-midway": (["drop", "refuse"], [0, 1, 1]),
    "no-ranges": (["drop", "whole"], [0, 1]),
    "length-too-large": (["long"], [0, 1]),
    "no-length": (["unsized"], [0]),
    "cut-and-no-length": (["drop", "unsized"], [0, 1]),
}


@pytest.mark.parametrize("states_md5", [False, True], ids=["", "md5"])
@pytest.mark.parametrize(("plan", "requested"), ENDINGS.values(), ids=ENDINGS)
def test_it_arrives_whole(plan, requested, states_md5: bool, row: Released, server: FileServer) -> None:
    server.plan, server.states_md5 = list(plan), states_md5
    compared = fetch(row)
    _is_there_alone(row)
    assert ("the server's MD5" if states_md5 else "no checksum is published") in compared
    firsts = [int((asked or "bytes=0-")[6:-1]) for asked in server.asked]
    assert [min(first, 1) for first in firsts] == requested
    assert firsts == sorted(firsts)


REFUSED = {  # the server's plan, and the message
    "missing": ([404], "the server answers 404"),
    "forbidden": ([403], "the server answers 403"),
    "always-busy": ([503] * 9, "the server answers 503 Service Unavailable, 4 times"),
    "always-late": (["drop", *["late"] * 9], "no answer for 0.3 s, 4 times"),
    "corrupt": (["corrupt"], "tiny.pt is broken"),
    "truncated": (["short"], "tiny.pt is broken"),
}


@pytest.mark.parametrize(("plan", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_checkpoint_gets_no_name(plan, message: str, row: Released, server: FileServer) -> None:
    server.plan, server.delay = list(plan), 0.4
    _error(lambda: fetch(row), message)
    assert not row.path.exists()
    server.plan.clear()
    fetch(row)
    _is_there_alone(row)


def test_offline(row: Released, server: FileServer) -> None:
    server.close()
    message = _error(lambda: fetch(row), "the server cannot be reached", "is this machine online?")
    assert row.address in message and str(row.path) in message
    assert not list(cache().iterdir())


def test_offline_midway(row: Released, server: FileServer) -> None:
    server.plan = ["drop", *["refuse"] * 9]
    _error(lambda: fetch(row), "what was received is kept")
    received = cache() / "tiny.pt.part" / "tiny.pt"
    assert 0 < received.stat().st_size < len(CONTENT)
    server.close()
    _error(lambda: fetch(row), "is this machine online?")
    assert received.exists()


def test_a_stopped_download_goes_on(row: Released, server: FileServer) -> None:
    """Also if it was killed after the last byte."""
    folder = cache() / "tiny.pt.part"
    for length in (1000, len(CONTENT)):
        folder.mkdir(parents=True)
        (folder / "tiny.pt").write_bytes(CONTENT[:length])
        fetch(row)
        assert server.asked.pop() == f"bytes={length}-" and not server.asked
        _is_there_alone(row)
        row.path.unlink()


def test_what_is_left_of_another_file_is_not_kept(row: Released, server: FileServer) -> None:
    folder = cache() / "tiny.pt.part"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes(bytes(len(CONTENT) + 1))
    fetch(row)  # longer than the file: begun again
    _is_there_alone(row)
    row.path.unlink()
    folder.mkdir()
    (folder / "tiny.pt").write_bytes(bytes(5000))
    _error(lambda: fetch(row), "it was removed, and the same command downloads it again")
    fetch(row)
    _is_there_alone(row)


def test_a_damaged_file_is_downloaded_again(row: Released, caplog: pytest.LogCaptureFixture) -> None:
    fetch(row)
    row.path.write_bytes(CONTENT[:-200])
    fetch(row)
    _is_there_alone(row)
    assert "it is downloaded again" in caplog.text


def test_published_size_and_checksums(row: Released, server: FileServer) -> None:
    sha, md5 = (getattr(hashlib, name)(CONTENT).hexdigest() for name in ("sha256", "md5"))
    for checksum in (f"sha256:{sha}", f"md5:{md5}"):
        exact = replace(row, size=len(CONTENT), checksum=checksum)
        algorithm, _, digest = checksum.partition(":")
        assert f"published {algorithm.upper()} {digest}" in fetch(exact)
        row.path.unlink()
        other = replace(exact, checksum=f"{algorithm}:{digest[::-1]}")
        _error(functools.partial(fetch, other), digest, digest[::-1])
        assert not row.path.exists()
    before = len(server.asked)
    _error(lambda: fetch(replace(row, size=7)), f"has {len(CONTENT)} bytes, and the published file 7")
    assert len(server.asked) == before + 1 and not list(cache().iterdir())


def test_the_servers_checksum(row: Released, server: FileServer) -> None:
    """What is left of a checkpoint with the same shapes, and the end of this one."""
    server.states_md5 = True
    folder = cache() / "tiny.pt.part"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes(_bytes(seed=1)[:-100])
    _error(lambda: fetch(row), "has the MD5", "it was removed")
    assert "the server's MD5" in fetch(row)


def test_another_network(row: Released, server: FileServer) -> None:
    server.content = _bytes(num_classes=4)
    _error(lambda: fetch(row), "label_emb.weight is [4, ", "expected [3, ")
    assert not row.path.exists()


def test_full_disk(row: Released, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetching.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2000, 1000, 1000))
        _error(lambda: fetch(row), "needs 0.00 GB more", "set FASTDIFF_CACHE to another folder")
    part = cache() / "tiny.pt.part" / "tiny.pt"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.symlink_to("/dev/full")
    _error(lambda: fetch(row), f"cannot write {part}: No space left on device")
    part.unlink()
    fetch(row)
    _is_there_alone(row)


def test_a_folder_that_cannot_be_written(row: Released, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    _error(lambda: fetch(row), "cannot write")


def test_one_process_downloads(row: Released, server: FileServer) -> None:
    """A second one says who does; the first one's end, even if it is killed, leaves the download to the next."""
    folder = cache() / "tiny.pt.part"
    folder.mkdir(parents=True)
    code = (
        "import sys, pathlib, os, fastdiff.files as f\n"
        "with f.locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(fastdiff.__file__).parents[1])},
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "locked\n"
    _error(lambda: fetch(row), f"in use by another run (process {process.pid})", "wait until")
    assert not server.asked
    process.kill()
    process.communicate()
    fetch(row)
    _is_there_alone(row)
    with locked(cache()):
        pass


def test_table() -> None:
    """Every published file of the zoo has a row, with an address that ends in its name."""
    assert {name: row.file for name, row in RELEASED.items()} == {
        name: preset.released for name, preset in PRESETS.items() if preset.released
    }
    for row in RELEASED.values():
        assert row.address.startswith("https://") and row.address.endswith(f"/{row.file}")
        if row.checksum:
            algorithm, _, digest = row.checksum.partition(":")
            assert len(digest) == 2 * hashlib.new(algorithm).digest_size and int(digest, 16)


def test_sizes_are_those_of_the_weights() -> None:
    """A .pt file is its weights in float32 and, for each tensor, some hundred bytes of names and directory."""
    from fastdiff.bench.costs import costs

    for row in RELEASED.values():
        if row.size:
            assert 0 < row.size - 4 * costs()[row.name].parameters < 300 * 700


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("adm-63", "adm-64"), ("64x64_difusion.pt", "64x64_diffusion.pt"), ("adm_256_uncond", "adm-256-uncond")],
)
def test_unknown_name(name: str, nearest: str) -> None:
    message = _error(lambda: released(name), repr(name), "fastdiff fetch --list")
    assert nearest in message


def test_names() -> None:
    assert {released(name).name for name in ("adm-64", "64x64_diffusion.pt", "64x64_diffusion")} == {"adm-64"}


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTDIFF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache() == tmp_path / "fastdiff"
    monkeypatch.setenv("FASTDIFF_CACHE", "~/models")
    assert cache() == Path.home() / "models"


def test_errors_in_words() -> None:
    words = fetching._in_words
    assert words(requests.ReadTimeout("x")) == "no answer for 30 s"
    assert words(requests.exceptions.SSLError("bad certificate")) == "the connection failed (bad certificate)"
