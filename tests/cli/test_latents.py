"""``fastdiff interpolate`` and ``fastdiff encode``: what they write is what Python makes, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff

QUICK = ("--steps", 4, "--no-progress")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    paths = {name: tmp_path / f"{name}.png" for name in ("a", "b", "wide")}
    for name, picture in zip(paths, (pixels[0], pixels[1], np.full((16, 24), 90, np.uint8)), strict=True):
        Image.fromarray(picture).save(paths[name])
    paths["three"] = tmp_path / "three.npz"
    np.savez(paths["three"], images=pixels)
    return paths


def _signed(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).movedim(-1, 1) / 127.5 - 1


def test_interpolates_between_seeds(command, checkpoints, tmp_path) -> None:
    files = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path)
    ended = command("interpolate", *files, "--seeds", 3, 7, 1, "-n", 5, "--class", "square", *QUICK)
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "interpolation.npz") as archive:
        made = archive["arr_0"]
    assert made.shape == (10, 8, 8, 1) and made.dtype == np.uint8
    model, options = fastdiff.load(checkpoints["tiny"]), {"classes": 1, "steps": 4, "progress": False}
    row = fastdiff.to_uint8(fastdiff.interpolate(model, 3, 7, 5, **options)).numpy()
    assert np.abs(made[:5].astype(int) - row).max() <= 1
    for seed, image in ((3, made[0]), (7, made[4]), (7, made[5]), (1, made[9])):
        alone = fastdiff.to_uint8(fastdiff.sample(model, 1, seed=seed, sampler="ddim", **options)).numpy()[0]
        assert np.abs(image.astype(int) - alone).max() <= 1
    assert not np.array_equal(made[0], made[4])
    # Two rows of five tiles with captions.
    assert Image.open(tmp_path / "interpolation.png").size == (5 * 102 + 6, 2 * 118 + 6)
    assert "made       2 x 5 images" in ended.out and str(tmp_path / "interpolation.png") in ended.out


def test_interpolates_between_images(command, checkpoints, files, tmp_path) -> None:
    given = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path / "out", "-n", 4, *QUICK)
    ended = command("interpolate", files["a"], files["b"], *given)
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "out" / "interpolation.npz") as archive:
        made = archive["arr_0"]
    model, ends = (
        fastdiff.load(checkpoints["tiny"]),
        [np.array(Image.open(files[k]))[None, ..., None] for k in "ab"],
    )
    a, b = (_signed(pixels)[0] for pixels in ends)
    expected = fastdiff.to_uint8(fastdiff.interpolate(model, a, b, 4, steps=4, progress=False)).numpy()
    assert np.abs(made.astype(int) - expected).max() <= 1
    fitted = command("interpolate", files["a"], files["wide"], "--fit", "crop", *given)
    assert fitted.code == 0, fitted.err


def test_encodes_and_says_how_well(command, checkpoints, files, tmp_path) -> None:
    given = ("--checkpoint", checkpoints["tiny"], "--class", "circle", "--batch-size", 2)
    ended = command("encode", files["three"], *given, "--out", tmp_path / "out", *QUICK)
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "out" / "latents.npz") as archive:
        found = dict(archive)
    assert found["latents"].shape == (3, 1, 8, 8) and found["latents"].dtype == np.float32
    model, options = fastdiff.load(checkpoints["tiny"]), {"classes": 0, "steps": 4, "progress": False}
    images = _signed(found["images"])
    expected = fastdiff.encode(model, images, **options)
    torch.testing.assert_close(torch.from_numpy(found["latents"]), expected, rtol=1e-3, atol=1e-3)
    again = fastdiff.sample(model, 3, noise=torch.from_numpy(found["latents"]), sampler="ddim", **options)
    assert np.abs(found["reconstructions"].astype(int) - fastdiff.to_uint8(again).numpy()).max() <= 1
    rmse = (127.5 * (again - images)).square().mean(dim=(1, 2, 3)).sqrt().numpy()
    np.testing.assert_allclose(found["rmse"], rmse, rtol=1e-2)
    assert f"error      {rmse.mean():.1f}" in ended.out
    assert Image.open(tmp_path / "out" / "encoded.png").size == (6 * 102 + 6, 118 + 6)


def test_more_steps_reconstruct_better(command, checkpoints, files, tmp_path) -> None:
    errors = []
    for steps in (3, 50):
        given = ("--checkpoint", checkpoints["tiny"], "--out", tmp_path, "--steps", steps, "--no-progress")
        assert command("encode", files["a"], *given).code == 0
        with np.load(tmp_path / "latents.npz") as archive:
            errors.append(float(archive["rmse"][0]))
    assert errors[1] < errors[0]


MISTAKES = {
    "one-image": (["interpolate", "@a"], "give at least two images and --n 2, got 1 images and n = 8"),
    "one-seed": (["interpolate", "--seeds", "1"], "give at least two seeds and --n 2, got 1 seeds"),
    "one-of-a-row": (["interpolate", "-n", "1"], "got 2 seeds and n = 1"),
    "seed": (["interpolate", "--seeds", "-1", "2"], "from 0 to 4294967295, got -1"),
    "size": (["interpolate", "@a", "@wide"], "give --fit crop or --fit pad to fit it"),
    "class": (["interpolate", "--class", "hexagon"], "unknown class 'hexagon'; known: circle"),
    "steps": (["interpolate", "--steps", "101"], "101"),
    "missing": (["encode", "nowhere.png"], "no image at nowhere.png; give a picture or an .npz"),
    "too-large": (["encode", "@wide", "--fit", "pad"], "cannot pad a 24x16 image to 8x8; use --fit crop"),
    "one-step": (["encode", "@a", "--steps", "1"], "encoding needs at least 2 steps, got '1'"),
    "classifier": (["encode", "@a", "--checkpoint", "@classifier"], "is a classifier"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(command, checkpoints, files, tmp_path, arguments: list[str], message: str) -> None:
    named = [str((files | checkpoints)[a[1:]]) if a.startswith("@") else a for a in arguments]
    defaults = {"--checkpoint": checkpoints["tiny"], "--steps": 3, "--out": tmp_path / "out"}
    options = [o for name, value in defaults.items() if name not in named for o in (name, value)]
    ended = command(*named, *options, "--no-progress")
    line = ended.err.removesuffix("\n")
    assert line.startswith("fastdiff: ") and "\n" not in line and message in line
    assert ended.code == 2 and not ended.out
    assert not list(tmp_path.glob("out/*"))
