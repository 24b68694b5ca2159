"""``fastdiff sample`` with good input."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from PIL import Image

import fastdiff

QUICK = ("--steps", 3, "--no-progress")


def _arrays(folder) -> tuple[np.ndarray, ...]:
    with np.load(folder / "samples.npz") as archive:
        return tuple(archive[name] for name in archive.files)


def test_writes_the_images_of_the_library_with_their_labels(command, checkpoints, tmp_path) -> None:
    out = tmp_path / "new" / "folder"
    ended = command("sample", "--checkpoint", checkpoints["tiny"], "--n", 7, "--out", out, *QUICK)
    assert ended.code == 0, ended.err
    images, labels = _arrays(out)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    model = fastdiff.load(checkpoints["tiny"])
    expected = fastdiff.sample(
        model, 7, classes=labels.tolist(), sampler="dpmpp", steps=3, batch_size=16, progress=False
    )
    assert np.array_equal(images, fastdiff.to_uint8(expected).numpy())
    assert Image.open(out / "samples.png").size[0] >= 3 * 96
    assert sorted(path.name for path in out.iterdir()) == ["samples.npz", "samples.png"]
    for word in ("device     cpu", "backend    ", "7 images in ", "images/s", str(out / "samples.png")):
        assert word in ended.out


@pytest.mark.parametrize(
    ("given", "labels"),
    [(["1"], [1, 1, 1, 1]), (["SQUARE", "0"], [1, 0, 1, 0]), (["long triangle"], [2, 2, 2, 2])],
    ids=["number", "name-and-number", "name-with-space"],
)
def test_classes_by_name_or_number(command, checkpoints, tmp_path, given, labels) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path)
    assert command("sample", *files, "--n", 4, "--classes", *given, *QUICK).code == 0
    assert _arrays(tmp_path)[1].tolist() == labels


def test_model_without_classes_has_no_labels(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["unconditional"], "--out", tmp_path)
    assert command("sample", *files, "--n", 2, *QUICK).code == 0
    (images,) = _arrays(tmp_path)
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8


@pytest.mark.parametrize(
    "options",
    [
        ("--sampler", "ddim", "--steps", "ddim4", "--eta", 0.5),
        ("--sampler", "ancestral", "--steps", "2,2"),
        ("--sampler", "heun", "--guidance-scale", 2),
        ("--dtype", "bfloat16"),
        ("--seed", 4294967295),
    ],
    ids=lambda options: "-".join(str(o).strip("-") for o in options),
)
def test_options_reach_the_sampler(command, checkpoints, tmp_path, options) -> None:
    plain = ("sample", "--checkpoint", checkpoints["tiny"], "--n", 2, *QUICK)
    assert command(*plain, "--out", tmp_path / "plain").code == 0
    ended = command(*plain, "--out", tmp_path / "changed", *options)
    assert ended.code == 0, ended.err
    assert not np.array_equal(_arrays(tmp_path / "plain")[0], _arrays(tmp_path / "changed")[0])


def test_second_run_replaces_the_first(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path)
    for n in (5, 2):
        assert command("sample", *files, "--n", n, *QUICK).code == 0
    assert len(_arrays(tmp_path)[0]) == 2


def test_compares_to_eager_and_shows_progress_over_all_steps(
    command, checkpoints, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a terminal, which has progress bars
    monkeypatch.setattr("fastdiff.bench.compare.SECONDS", 0.0)
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path)
    ended = command("sample", *files, "--n", 5, "--batch-size", 2, "--steps", 4, "--compare")
    assert ended.code == 0, ended.err
    assert re.search(r"^speed      \d+\.\d\dx as fast as eager PyTorch", ended.out, re.MULTILINE)
    assert "2 images, 2 steps; medians of 2 turns" in ended.out
    line = r"^sampled    5 images in .* s: .* images/s, 4 model calls each$"
    assert re.search(line, ended.out, re.MULTILINE)
    assert "12/12" in ended.err  # three batches of four steps


def test_a_file_gets_no_progress_bar(command, checkpoints, tmp_path, monkeypatch) -> None:
    """Carriage returns are for terminals; there the bar is shown."""
    argv = ("sample", "--checkpoint", checkpoints["tiny"], "--n", 2, "--steps", 2, "--out", tmp_path)
    assert command(*argv).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "step/s" in command(*argv).err
