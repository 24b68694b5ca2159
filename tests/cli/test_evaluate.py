"""``fastdiff evaluate``: what it prints and writes, on tiny networks and on the bundled ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

DATA = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
NAMES = {
    "fid": "FID",
    "sfid": "sFID",
    "is": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
}


@pytest.fixture
def files(checkpoints, tmp_path: Path) -> dict[str, Path]:
    """Sets of 8 x 8 images, the features' classifier, and what is wrong in some way."""
    rng = np.random.default_rng(0)
    real, dark = (rng.integers(0, top, (40, 8, 8, 1), dtype=np.uint8) for top in (256, 30))
    sets: dict[str, Any] = {
        "real": {"arr_0": real, "arr_1": np.arange(40) % 3},
        "alike": {"arr_0": rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)},
        "dark": {"arr_0": dark},
        "large": {"arr_0": np.zeros((4, 9, 9, 1), np.uint8)},
        "rgb": {"arr_0": np.zeros((4, 8, 8, 3), np.uint8)},
        "unlabelled": {"images": real},
        "labelled-too-high": {"images": real, "labels": np.arange(40)},
        "statistics-of-inception": {"mu": np.zeros(2048), "sigma": np.zeros((2048, 2048))},
    }
    for name, arrays in sets.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "pictures").mkdir()
    for i, picture in enumerate(sets["alike"]["arr_0"]):
        Image.fromarray(picture[..., 0]).save(tmp_path / "pictures" / f"{i:02d}.png")
    header = bytes([0, 0, 8, 3, 0, 0, 0, 50, 0, 0, 0, 8, 0, 0, 0, 8])
    with gzip.open(tmp_path / "alike-idx3-ubyte.gz", "wb") as file:
        file.write(header + sets["alike"]["arr_0"].tobytes())
    found = {name: tmp_path / f"{name}.npz" for name in sets}
    found |= {"pictures": tmp_path / "pictures", "idx": tmp_path / "alike-idx3-ubyte.gz"}
    return {**checkpoints, **found}


def _evaluate(command, files: dict[str, Path], samples: str, *options: object, out: Path) -> Any:
    """The values by metric."""
    ended = command(
        "evaluate",
        files.get(samples, samples),
        "--features",
        files["classifier"],
        "--no-progress",
        "--out",
        out,
        *options,
    )
    assert ended.code == 0, ended.err
    content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    for name, metric in content["metrics"].items():
        line = next(row for row in ended.out.splitlines() if row.startswith(f"{NAMES[name]} (classifier)"))
        assert f"{metric['value']:.4f}" in line and metric["source"] in line
    assert f"wrote      {out / 'evaluation.json'}" in ended.out
    return content


def test_samples_of_every_kind_give_the_same_numbers(command, files, tmp_path) -> None:
    found = [
        _evaluate(command, files, kind, "--reference", files["real"], out=tmp_path / kind)
        for kind in ("alike", "pictures", "idx")
    ]
    assert list(found[0]["metrics"]) == list(NAMES)
    values = [{name: metric["value"] for name, metric in f["metrics"].items()} for f in found]
    assert values[1] == pytest.approx(values[0], rel=1e-4) and values[2] == pytest.approx(values[0], rel=1e-4)
    assert found[0]["features"] == "classifier"
    assert "not comparable with published numbers" in found[0]["note"]
    assert found[0]["samples"]["images"] == 50 and found[0]["reference"]["images"] == 40


def test_dark_images_are_told_from_bright_ones(command, files, tmp_path) -> None:
    reference = ("--reference", files["real"], "--metrics", "fid", "sfid")
    like, unlike = (
        _evaluate(command, files, name, *reference, out=tmp_path)["metrics"] for name in ("alike", "dark")
    )
    assert list(like) == ["fid", "sfid"]
    assert all(like[name]["value"] < unlike[name]["value"] for name in like)


def test_statistics_are_written_and_read(command, files, tmp_path) -> None:
    saved = tmp_path / "statistics.npz"
    first = _evaluate(
        command, files, "alike", "--reference", files["real"], "--save-statistics", saved, out=tmp_path / "1"
    )
    second = _evaluate(command, files, "alike", "--reference", saved, out=tmp_path / "2")
    for name, metric in first["metrics"].items():
        assert second["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-6)


def test_a_checkpoint_is_sampled_first(command, files, tmp_path) -> None:
    """The very images of fastdiff sample."""
    options = ("--n", 6, "--steps", 3, "--sampler", "euler", "--seed", 5, "--classes", "circle", "1")
    found = _evaluate(
        command, files, "tiny", "--reference", files["real"], *options, out=tmp_path / "at once"
    )
    assert found["samples"]["sampler"] == "euler" and found["samples"]["images"] == 6
    assert any(warning.startswith("FID of 6 samples in 32 features") for warning in found["warnings"])
    ended = command(
        *("sample", "--checkpoint", files["tiny"], "--no-progress", "--out", tmp_path),
        *options,
    )
    assert ended.code == 0, ended.err
    again = _evaluate(
        command, files, str(tmp_path / "samples.npz"), "--reference", files["real"], out=tmp_path / "after"
    )
    for name, metric in found["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3, abs=1e-4)


def test_inception_score_alone_needs_no_reference(command, files, tmp_path) -> None:
    found = _evaluate(command, files, "alike", "--metrics", "is", out=tmp_path)
    assert found["reference"] is None and 1 <= found["metrics"]["is"]["value"] <= 1000


def test_bits_per_dim(command, files, tmp_path) -> None:
    options = ("--bits-per-dim", "--reference", files["real"], "--n", 5, "--timestep-respacing", 10)
    ended = command(
        "evaluate", files["tiny"], *options, "--batch-size", 2, "--no-progress", "--out", tmp_path
    )
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "bits_per_dim.json").read_text(encoding="utf-8"))
    assert found["images"] == 5 and len(found["vb"]) == len(found["timesteps"]) == 10
    assert found["bits_per_dim"] == pytest.approx(found["prior"] + sum(found["vb"]), rel=1e-5)
    assert f"total      {found['bits_per_dim']:.4f} bits per dimension" in ended.out
    assert Image.open(tmp_path / "bits_per_dim.png").width > 600


@pytest.mark.skipif(not DATA.exists(), reason="needs the Debian package dataset-fashion-mnist")
def test_the_bundled_model_is_better_than_noise(command, tmp_path) -> None:
    """The defaults, on a few samples of the bundled model: all labelled as the bundled classifier's numbers."""
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", noise)
    np.savez(tmp_path / "few.npz", images=_test_images(500))
    values = {}
    for samples in ("fashion-mnist", tmp_path / "noise.npz"):
        ended = command(
            *("evaluate", samples, "--reference", tmp_path / "few.npz", "--fit", "pad", "--n", 100),
            *("--steps", 6, "--no-progress", "--out", tmp_path),
        )
        assert ended.code == 0, ended.err
        assert "FID (fashion-mnist-classifier)" in ended.out and "FID  " not in ended.out
        content = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
        values[str(samples)] = {name: metric["value"] for name, metric in content["metrics"].items()}
    model, noise = values.values()
    print(model, noise)
    assert model["fid"] < 0.2 * noise["fid"] and model["sfid"] < noise["sfid"]
    assert model["is"] > noise["is"] and model["precision"] > noise["precision"] + 0.3


def _test_images(n: int) -> np.ndarray:
    from fastdiff.data.readers.arrays import read_idx

    return read_idx(DATA)[:n]


BAD = {
    "nothing": ([], "missing: SAMPLES; see fastdiff evaluate --help"),
    "no-reference": (["@alike"], "give --reference DATA to compare with"),
    "missing-samples": (["nowhere.npz", "--reference", "@real"], "no data at nowhere.npz; give a folder"),
    "missing-checkpoint": (["nowhere.pt", "--reference", "@real"], "no checkpoint at nowhere.pt; give"),
    "missing-reference": (["@alike", "--reference", "nowhere"], "no data at nowhere; give a folder"),
    "another-size": (["@large", "--reference", "@real"], "give --fit pad or --fit crop to fit them"),
    "reference-of-another-size": (["@alike", "--reference", "@large"], "give --fit pad or --fit crop"),
    "too-large-to-pad": (["@large", "--reference", "@real", "--fit", "pad"], "cannot pad a 9x9 image to 8x8"),
    "colour": (["@rgb", "--reference", "@real"], "holds RGB images of 8 x 8 pixels and the images that"),
    "more-than-there-are": (["@alike", "--reference", "@real", "--n", "51"], "holds 50 images, not 51"),
    "no-images": (["@alike", "--reference", "@real", "--n", "0"], "n must be at least 1, got 0"),
    "no-batch": (["@alike", "--reference", "@real", "--batch-size", "0"], "batch_size must be at least 1"),
    "one-image": (["@alike", "--reference", "@real", "--n", "1"], "needs at least 2 images"),
    "unknown-metric": (
        ["@alike", "--reference", "@real", "--metrics", "kid"],
        "'kid' is none of fid, sfid, is, precision, recall",
    ),
    "other-statistics": (
        ["@alike", "--reference", "@statistics-of-inception"],
        "32 features cannot be compared with 2048",
    ),
    "no-inception-weights": (
        ["@alike", "--reference", "@real", "--features", "inception"],
        "give --inception-weights pt_inception-2015-12-05-6726825d.pth",
    ),
    "missing-inception-weights": (
        ["@alike", "--reference", "@real", "--features", "inception", "--inception-weights", "nowhere.pth"],
        "no Inception weights at nowhere.pth; give the file",
    ),
    "features-of-a-denoiser": (
        ["@alike", "--reference", "@real", "--features", "fashion-mnist"],
        "is no classifier",
    ),
    "samples-of-a-classifier": (["@classifier", "--reference", "@real"], "is a classifier"),
    "unknown-class": (["@tiny", "--reference", "@real", "--classes", "hexagon"], "unknown class 'hexagon'"),
    "too-many-steps": (["@tiny", "--reference", "@real", "--steps", "101"], "from 1 to 100, got '101'"),
    "statistics-no-npz": (
        ["@alike", "--reference", "@real", "--save-statistics", "a.txt"],
        "--save-statistics writes an .npz, got a.txt",
    ),
    "unknown-device": (["@alike", "--reference", "@real", "--device", "abacus"], "device 'abacus' cannot"),
    "bits-without-data": (["@tiny", "--bits-per-dim"], "--bits-per-dim needs images: give --reference DATA"),
    "bits-of-images": (["@alike", "--bits-per-dim", "--reference", "@real"], "is not a checkpoint"),
    "bits-without-labels": (
        ["@unnamed", "--bits-per-dim", "--reference", "@unlabelled"],
        "the model has 3 classes but",
    ),
    "labels-too-high": (
        ["@unnamed", "--bits-per-dim", "--reference", "@labelled-too-high"],
        "is out of range: the model's classes are 0 to 2",
    ),
    "respacing": (
        ["@tiny", "--bits-per-dim", "--reference", "@real", "--timestep-respacing", "ddim99"],
        "ddim99",
    ),
    "broken-model": (
        ["@nan", "--bits-per-dim", "--reference", "@real", "--timestep-respacing", "2"],
        "NaN or Inf",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_mistakes_end_in_one_line(command, files, tmp_path, options: list[str], message: str) -> None:
    named = [str(files[o[1:]]) if o.startswith("@") else o for o in options]
    features = [] if "--features" in options else ["--features", files["classifier"]]
    ended = command("evaluate", *named, *features, "--no-progress", "--out", tmp_path / "out")
    line = ended.err.removesuffix("\n")
    assert line.startswith("fastdiff: ") and "\n" not in line
    assert message in line
    assert ended.code == 2 and not ended.out
    assert not list(tmp_path.glob("out/*"))


def test_copies_of_the_training_images(command, tmp_path: Path) -> None:
    data, new = (np.random.default_rng(k).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8) for k in range(2))
    (tmp_path / "data").mkdir()
    for k, image in enumerate(data):
        Image.fromarray(image).save(tmp_path / "data" / f"{k:02d}.png")
    np.savez(tmp_path / "samples.npz", np.concatenate([data[11:12, :, ::-1], new[:3]]))
    options = ("--copies", "--reference", tmp_path / "data", "--no-progress", "--out", tmp_path)
    ended = command("evaluate", tmp_path / "samples.npz", *options)
    assert ended.code == 0, ended.err
    assert (
        "copies     25.0% of the samples" in ended.out
        and "copies     0.0% of the reference's own" in ended.out
    )
    content = json.loads((tmp_path / "copies.json").read_text(encoding="utf-8"))
    assert content["near_copies"] == 0.25 and content["threshold"] == 0.5
    first = content["samples"][0]
    assert first["nearest"] == str(tmp_path / "data" / "11.png") and first["distance"] < 0.01 > first["ratio"]
    with Image.open(tmp_path / "nearest.png") as drawn:
        assert drawn.mode == "RGB"
    ended = command("evaluate", tmp_path / "samples.npz", "--copies", "--out", tmp_path)
    assert ended.code == 2 and "--reference" in ended.err
