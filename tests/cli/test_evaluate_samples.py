"""``fastdiff evaluate`` reads what ``fastdiff sample --out OUT`` has written: the folder, the npz, the PNG files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import inception
import numpy as np
import pytest
import tiny
from tiny_checkpoint import write_checkpoint

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

GREY = replace(tiny.GRAY, image_size=32, model_channels=32)
RGB = replace(GREY, image_size=8, in_channels=3, out_channels=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    configs = {"grey": GREY, "rgb": RGB}
    return {
        name: write_checkpoint(folder / f"{name}.safetensors", config) for name, config in configs.items()
    }


@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.proof)])
def test_samples_and_the_bundled_classifier(command, models, tmp_path, n: int) -> None:
    """As README has it: fastdiff sample --out OUT, then fastdiff evaluate OUT."""
    out = tmp_path / "out"
    options = ("--n", n, "--batch-size", 50, "--steps", 1, "--no-progress", "--out", out)
    ended = command("sample", "--checkpoint", models["grey"], *options)
    assert ended.code == 0 and f"{n} images" in ended.out, ended.err
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", noise)
    ended = command("evaluate", out, "--reference", tmp_path / "data.npz", "--no-progress", "--out", out)
    assert ended.code == 0, ended.err
    assert f"samples    {n} images of {out / 'samples.npz'}" in ended.out
    content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert content["samples"]["images"] == n and content["features"] == "fashion-mnist-classifier"
    assert list(content["metrics"]) == ["fid", "sfid", "is", "precision", "recall"]
    assert content["metrics"]["fid"]["value"] > 0


def test_folder_npz_and_png_files_are_the_same_images(command, checkpoints, tmp_path) -> None:
    out, values = tmp_path / "out", []
    options = ("--n", 60, "--batch-size", 7, "--steps", 3, "--png", "--no-progress", "--out", out)
    assert command("sample", "--checkpoint", checkpoints["tiny"], *options).code == 0
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", noise)
    features = (
        "--features",
        checkpoints["classifier"],
        "--metrics",
        "fid",
        "--no-progress",
        "--out",
        tmp_path,
    )
    pairs = [(path, tmp_path / "data.npz") for path in (out, out / "samples.npz", out / "images")]
    for samples, reference in (*pairs, (out / "samples.npz", out)):  # a folder can be the reference, too
        ended = command("evaluate", samples, "--reference", reference, *features)
        assert ended.code == 0, ended.err
        content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
        assert content["samples"]["images"] == 60
        values.append(content["metrics"]["fid"]["value"])
    assert values[0] == values[1] == pytest.approx(values[2], rel=1e-4)
    assert values[3] < 1e-8 < values[0]


def test_two_thousand_rgb_images_and_inception(command, models, tmp_path, monkeypatch) -> None:
    """The recipe of docs/my_own_images.md, with a stand-in for the network."""
    inception.install(monkeypatch)
    weights, out = inception.write_weights(tmp_path), tmp_path / "samples"
    options = ("--n", 2000, "--batch-size", 250, "--steps", 1, "--png", "--no-progress", "--out", out)
    assert command("sample", "--checkpoint", models["rgb"], *options).code == 0
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", noise)
    given = ("--inception-weights", weights, "--metrics", "is", "precision")
    for path in (out, out / "images"):
        ended = command(
            *("evaluate", path, "--reference", tmp_path / "data.npz", *given, "--no-progress"),
            *("--out", tmp_path / "found"),
        )
        assert ended.code == 0, ended.err
        assert "samples    2000 images of" in ended.out and "Inception Score (Inception v3)" in ended.out


def test_rgb_images_without_inception_say_what_to_give(command, models, tmp_path) -> None:
    np.savez(tmp_path / "rgb.npz", np.zeros((3, 8, 8, 3), np.uint8))
    for samples in (tmp_path / "rgb.npz", models["rgb"]):
        ended = command("evaluate", samples, "--reference", tmp_path / "rgb.npz", "--out", tmp_path / "out")
        assert ended.code == 2 and ended.err.count("\n") == 1
        assert (
            "RGB images" in ended.err and "give --inception-weights with the file published at" in ended.err
        )
        assert "/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth" in ended.err


def test_a_run_that_has_made_nothing_yet(command, tmp_path) -> None:
    (tmp_path / "out" / "samples.parts").mkdir(parents=True)
    ended = command("evaluate", tmp_path / "out", "--metrics", "is", "--out", tmp_path / "found")
    assert (
        ended.code == 2 and "is the beginning of a run; give its fastdiff sample command again" in ended.err
    )
