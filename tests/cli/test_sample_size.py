"""``fastdiff sample`` and the size of what it does: time and memory said beforehand, many images, freed weights."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff
from fastdiff.cli.batch_files import BatchFiles
from fastdiff.cli.sample_files import write_npz, write_pngs
from fastdiff.inference import is_for
from fastdiff.inference.packed import is_freed

QUICK = ("--steps", 3, "--no-progress")


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp", "euler", "heun"])
def test_time_and_memory_are_said_first(command, checkpoints, tmp_path, sampler: str) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--sampler", sampler)
    ended = command("sample", *files, "--n", 5, "--batch-size", 2, *QUICK)
    assert ended.code == 0, ended.err
    count = 3 * (5 if sampler == "heun" else 3)
    said = rf"^estimate   [\d.]+ m?s \({count} model calls of [\d.]+ m?s\), ([\d.]+) GiB of memory\n"
    found = re.match(said, ended.out)
    assert found and 0.1 < float(found[1]) < 20
    assert not ended.err  # seconds are no reason to warn


def test_the_estimate_is_one_step_of_a_batch(command, checkpoints, tmp_path, monkeypatch) -> None:
    steps: list[tuple[int, int]] = []
    batches = fastdiff.Sampler._batches

    def recording(self: fastdiff.Sampler, n: int, asked: Any, progress: bool) -> Any:
        steps.append((n, self.calls))
        return batches(self, n, asked, progress)

    monkeypatch.setattr(fastdiff.Sampler, "_batches", recording)
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--n", 7, "--batch-size", 2)
    assert command("sample", *files, *QUICK).code == 0
    assert steps == [(2, 1), (7, 3)]
    steps.clear()
    upsampler = ("--upsampler", checkpoints["low-res"], "--upsampler-steps", 2)
    ended = command("sample", *files[:-2], "--batch-size", 4, *upsampler, "--no-progress", "--steps", 10)
    assert ended.code == 0, ended.err
    assert steps == [(4, 1), (4, 1), (7, 10), (4, 2), (3, 2)]
    assert re.search(r"\(20 model calls of [\d.]+ m?s and 4 model calls of [\d.]+ m?s\)", ended.out)


def test_hours_are_warned_of(command, checkpoints, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fastdiff.cli.estimate.LONG", 0.0)
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--n", 2, "--no-progress")
    ended = command("sample", *files, "--sampler", "ddim", "--steps", 100)
    assert ended.code == 0 and ended.err.count("\n") == 1
    assert re.search(
        r"this will take [\d.]+ m?s; shorter with --sampler dpmpp --steps 20 \(about ", ended.err
    )
    assert "GPU (--device cuda)" in ended.err and ended.err.endswith("or fewer images (--n)\n")
    ended = command("sample", *files, "--steps", 3)
    assert ended.code == 0 and "--steps 20" not in ended.err


def test_a_model_that_fails_is_told_by_the_run_itself(command, checkpoints, tmp_path) -> None:
    ended = command("sample", "--checkpoint", checkpoints["nan"], "--out", tmp_path, "--n", 2, *QUICK)
    assert ended.code == 2 and not ended.out and "NaN or Inf at step 1 of 3" in ended.err


def test_the_picture_shows_a_hundred(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--png", "--batch-size", 30)
    ended = command("sample", *files, "--n", 103, *QUICK)
    assert ended.code == 0, ended.err
    assert f"{tmp_path / 'samples.png'} (the first 100), {tmp_path / 'samples.npz'}, " in ended.out
    assert Image.open(tmp_path / "samples.png").size == (10 * 102 + 6, 10 * 118 + 6)
    with np.load(tmp_path / "samples.npz") as archive:
        assert len(archive["arr_0"]) == len(archive["arr_1"]) == 103
        last = archive["arr_0"][102, ..., 0]
    assert np.array_equal(np.array(Image.open(tmp_path / "images" / "000102.png")), last)
    assert command("sample", *files, "--n", 4, *QUICK).code == 0  # the images of a longer run before are gone
    assert len(list((tmp_path / "images").iterdir())) == 4


@pytest.mark.parametrize("labels", [None, np.arange(7)], ids=["bare", "labelled"])
def test_an_npz_in_parts_is_numpys(tmp_path, labels) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    write_npz(tmp_path / "parts.npz", iter([images[:3], images[3:6], images[6:]]), 7, labels)
    np.savez(tmp_path / "whole.npz", *([images] if labels is None else [images, labels]))
    with np.load(tmp_path / "parts.npz") as parts, np.load(tmp_path / "whole.npz") as whole:
        assert parts.files == whole.files
        for name in whole.files:
            assert parts[name].dtype == whole[name].dtype and np.array_equal(parts[name], whole[name])
    assert abs((tmp_path / "parts.npz").stat().st_size - (tmp_path / "whole.npz").stat().st_size) < 200


def test_fifty_thousand_images_are_never_in_memory_at_once(tmp_path) -> None:
    """154 MB of them, in batches of 1.5 MB: written, read back and shown in less than 8 MB."""
    n, size = 50_000, 500
    parts = BatchFiles(tmp_path, {}, n, size)
    rng = np.random.default_rng(0)
    for index in range(parts.count):
        parts.write(index, np.full((size, 32, 32, 3), index, np.uint8) ^ rng.integers(0, 2, dtype=np.uint8))
    assert parts.images_finished == n
    tracemalloc.start()
    write_npz(tmp_path / "samples.npz", parts.finished(), n, np.arange(n))
    write_pngs(tmp_path / "images", parts.finished(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, f"{peak / 1e6:.1f} MB"
    with np.load(tmp_path / "samples.npz") as archive:
        images = archive["arr_0"]
    assert images.shape == (n, 32, 32, 3) and (images[::size, 0, 0, 0] // 2 == np.arange(100) // 2).all()
    assert len(list((tmp_path / "images").iterdir())) == 1000


@pytest.mark.parametrize("compare", [False, True])
def test_weights_are_freed_unless_the_comparison_needs_them(
    command, checkpoints, tmp_path, monkeypatch, compare: bool
) -> None:
    if not is_for(fastdiff.load(checkpoints["tiny"])):
        pytest.skip("the kernels that read packed weights are not there")
    freed, run = [], fastdiff.Sampler._run

    def looking(self: fastdiff.Sampler, *args: Any) -> Any:
        model: Any = self.model
        freed.append(all(is_freed(p) for p in model.parameters() if p.dim() == 4))
        return run(self, *args)

    monkeypatch.setattr(fastdiff.Sampler, "_run", looking)
    monkeypatch.setattr("fastdiff.bench.compare.SECONDS", 0.0)
    files = ("--checkpoint", checkpoints["tiny"], "--n", 3, *QUICK)
    files += ("--compare",) if compare else ()
    ended = command("sample", *files, "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert ("speed      " in ended.out) == compare
    assert set(freed) == {not compare}
    with np.load(tmp_path / "samples.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    model = fastdiff.load(checkpoints["tiny"])
    expected = fastdiff.sample(
        model, 3, classes=torch.from_numpy(labels), sampler="dpmpp", steps=3, progress=False
    )
    assert np.array_equal(images, fastdiff.to_uint8(expected).numpy())
