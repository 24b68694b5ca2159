"""``fastdiff fetch`` and ``fastdiff presets``, and published checkpoints by name in other commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from file_server import FileServer

import fastdiff
from fastdiff.bench.words import columns
from fastdiff.checkpoint.released import RELEASED, Released
from fastdiff.cli.fetch import sample_command
from fastdiff.scalars import duration
from fastdiff.zoo import PRESETS, Preset

FILES = {  # networks of the three kinds, by the names of small presets
    "small": replace(tiny.UNET, num_classes=3),
    "small-classifier": replace(tiny.CLASSIFIER, num_outputs=3),
    "small-16": replace(tiny.UNET, image_size=16, low_res="bilinear", num_classes=3),
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, FileServer]]:
    """Servers of published checkpoints with random weights, one for each of FILES."""
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "cache"))
    servers = {}
    for name, config in FILES.items():
        torch.save(tiny.build(config).state_dict(), tmp_path / "model.pt")
        servers[name] = FileServer((tmp_path / "model.pt").read_bytes())
        preset = Preset(config, fastdiff.DiffusionConfig(steps=50), f"{name}_file.pt")
        monkeypatch.setitem(PRESETS, name, preset)
        row = Released(name, servers[name].folder, len(servers[name].content))
        monkeypatch.setitem(RELEASED, name, row)
    yield servers
    for server in servers.values():
        server.close()


def test_fetch_then_the_commands_it_prints(command, published, tmp_path, monkeypatch) -> None:
    """The three kinds of files; one connection breaks off."""
    published["small"].plan = ["drop"]
    monkeypatch.chdir(tmp_path)
    fetched = command("fetch", *FILES)
    assert fetched.code == 0, fetched.err
    printed = [line.split(maxsplit=1)[1] for line in fetched.out.splitlines() if line.startswith("sample ")]
    assert len(printed) == 3 and f"file      {RELEASED['small'].path}" in fetched.out
    for line in printed:
        words = line.removeprefix("fastdiff ").split()
        extra = ("--steps", "2", "--no-progress", "--out", "made")
        sampled = command(*words, *extra)
        assert sampled.code == 0, sampled.err
        size = 16 if "--upsampler" in line else 8
        assert np.load("made/samples.npz")["arr_0"].shape == (4, size, size, 3)
        for file in Path("made").iterdir():
            file.unlink()
    again = command("fetch", "small_file.pt")
    assert again.code == 0 and len(published["small"].asked) == 2


def test_not_fetched(command, published) -> None:
    for option in ("--checkpoint", "--classifier", "--upsampler"):
        ended = command("sample", option, "small")
        assert ended.code == 2 and "do so with: fastdiff fetch small" in ended.err


def test_list(command, published) -> None:
    before = command("fetch", "--list").out
    assert command("fetch", "small").code == 0
    after = command("fetch", "--list").out
    for name, row in RELEASED.items():
        (line,) = [line for line in before.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[-2:] == ["-", row.address] and " GB " in line
        (line,) = [line for line in after.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[-2] == ("yes" if name == "small" else "-")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "give the name of a checkpoint; fastdiff fetch --list shows all"),
        (("adm-46",), "did you mean adm-64"),
        (("fashion-mnist",), "no published checkpoint has the name 'fashion-mnist'"),
    ],
    ids=["nothing", "unknown", "bundled"],
)
def test_mistakes(command, argv, message) -> None:
    ended = command("fetch", *argv)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1


def test_all_names_are_known_before_the_first_download(command, published) -> None:
    assert command("fetch", "small", "smell").code == 2
    assert not published["small"].asked


def test_errors_are_one_line(command, published) -> None:
    published["small"].plan = [404]
    ended = command("fetch", "small")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert f"{RELEASED['small'].address}: the server answers 404 Not Found" in ended.err


def test_sample_commands_name_what_exists() -> None:
    for row in RELEASED.values():
        words = sample_command(row).split()
        for option in ("--checkpoint", "--classifier", "--upsampler"):
            if option in words:
                assert words[words.index(option) + 1] in RELEASED


def test_presets(command) -> None:
    lines = command("presets", "--device", "cpu").out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:-2]}
    assert list(rows) == list(PRESETS)
    for text in ("64 px", "295.9 M", "1.184 GB", "109.7", "fastdiff fetch adm-64", "ImageNet"):
        assert text in rows["adm-64"]
    assert "bundled" in rows["fashion-mnist"] and " - " in rows["ddpm-cifar10"]
    assert "GMAC/s" in lines[-1] and lines[0].split()[:2] == ["name", "image"]


def test_words() -> None:
    assert columns([("a", "bb"), ("ccc", "d")], right=(1,)) == "a    bb\nccc   d"
    assert [duration(s) for s in (0.0012, 0.035, 0.2, 1.84, 30, 99.4, 99.6, 5000, 36000, 1e6)] == [
        "1.2 ms", "35 ms", "0.2 s", "1.8 s", "30 s", "99 s", "1.7 min", "83 min", "10 h", "12 days",
    ]  # fmt: skip
