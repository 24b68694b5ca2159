"""The first hour of a new user, as one script each: from pictures to a model, and from a published file to pictures."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from file_server import FileServer
from PIL import Image, ImageDraw

import fastdiff
from fastdiff.checkpoint.released import RELEASED, Released
from fastdiff.models import UNetConfig
from fastdiff.zoo import PRESETS, Preset

KINDS = ("circle", "square")


@pytest.fixture
def run(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``run("fastdiff sample -n 4")`` in a folder of one's own: what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *more: object, code: int = 0) -> str:
        ended = command(*shlex.split(line)[1:], *more)
        assert ended.code == code, f"{line}\n{ended.out}\n{ended.err}"
        return ended.out + ended.err

    return run


def draw(
    folder: str, kinds: tuple[str, ...] = KINDS, count: int = 8, size: tuple[int, int] = (19, 16)
) -> None:
    """Pictures of shapes at random places, in a folder for each kind."""
    rng = np.random.default_rng(0)
    for kind in kinds:
        Path(folder, kind).mkdir(parents=True)
        for i in range(count):
            picture = Image.new("RGB", size, tuple(rng.integers(0, 60, 3).tolist()))
            left, top = rng.integers(0, 6, 2).tolist()
            pen = ImageDraw.Draw(picture)
            shape = pen.ellipse if kind == "circle" else pen.rectangle
            shape((left, top, left + 8, top + 8), fill=tuple(rng.integers(120, 256, 3).tolist()))
            picture.save(f"{folder}/{kind}/{i}.png")


def printed_command(said: str, label: str) -> str:
    found = re.search(rf"^{label} +(fastdiff .*)$", said, re.MULTILINE)
    assert found, said
    return found[1]


def rows(file: str) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def loaded(file: str) -> tuple[fastdiff.DiffusionConfig | None, UNetConfig, tuple[str, ...]]:
    model = fastdiff.load(file)
    assert isinstance(model.config, UNetConfig)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    return model.diffusion, model.config, tuple(model.class_names)


def test_from_a_folder_of_pictures_to_a_model(run) -> None:
    draw("photos")
    said = run("fastdiff data check photos")
    assert "16 in photos" in said and "circle 8, square 8" in said and "19x16" in said

    quick = "--batch-size 4 --warmup 1"
    said = run(f"fastdiff train --data photos --out run --steps 4 --log-every 2 --sample-every 2 {quick}")
    for told in ("16 colour images", "circle 8, square 8", "M parameters", "float32", "images/s", " left"):
        assert told in said
    assert "\r" not in said
    _, config, names = loaded("run/model.safetensors")
    assert (config.image_size, config.in_channels, config.num_classes) == (16, 3, 2) and names == KINDS
    options = json.loads(Path("run/config.json").read_text())
    assert options["data"] == "photos" and options["steps"] == 4 and options["num_classes"] == 2
    assert [row["step"] for row in rows("run/log.jsonl")] == [2, 4]
    for grid in ("step-00000002", "step-00000004"):
        with Image.open(f"run/samples/{grid}.png") as picture:
            assert picture.width >= 2 * 16 and picture.height > 4 * 16

    run(printed_command(said, "sample"), "--steps", 2)
    assert np.load("run/sampled/samples.npz")["arr_0"].shape == (16, 16, 16, 3)
    run(printed_command(said, "evaluate"), "--n", 2)
    bound = json.loads(Path("run/evaluation/bits_per_dim.json").read_text())
    assert any(isinstance(value, float) and 0 < value < 100 for value in bound.values())
    said = run(printed_command(said, "resume"))
    assert "goes on from step 4" in said and "trained 8 steps" in said
    assert [row["step"] for row in rows("run/log.jsonl")] == [2, 4, 6, 8]

    said = run(
        "fastdiff train --config run/config.json --out run2 --steps 500 --max-minutes 0.0001 --sample-every 0"
    )
    assert "--max-minutes" in said and Path("run2/model.safetensors").exists()
    assert "trained 2 steps" in run(printed_command(said, "resume"), "--steps", 2, "--max-minutes", 10)


def test_a_run_with_more_options(run, tmp_path: Path) -> None:
    draw("photos", ("circle", "square", "line"), count=4)
    draw("held-out", count=2)
    Path("photos/circle/broken.png").write_bytes(b"no picture")
    assert "broken.png" in run("fastdiff data check photos", code=2)
    start = tiny.build(replace(tiny.GRAY, image_size=16, in_channels=3, out_channels=3, num_classes=2))
    start.diffusion, start.class_names = fastdiff.DiffusionConfig(schedule="cosine"), KINDS
    fastdiff.save(start, "start.safetensors")
    assert "broken.png" in run("fastdiff train --data photos --init start.safetensors --out run", code=2)

    quick = "--skip-broken --steps 3 --batch-size 4 --warmup 1 --sample-every 0"
    said = run(
        f"fastdiff train --data photos --init start.safetensors --out run {quick} --lr-schedule cosine"
        " --loss-weighting min-snr --flip --val-data held-out --val-every 3 --track csv"
    )
    assert "label_emb.weight" in said  # of three classes where there were two
    _, config, names = loaded("run/model.safetensors")
    assert config.num_classes == 3 and names == ("circle", "line", "square")
    assert json.loads(Path("run/config.json").read_text())["loss_weighting"] == "min-snr"
    (table,) = [path for path in Path("run").iterdir() if path.suffix == ".csv"]
    assert "loss" in table.read_text().splitlines()[0]

    run(f"fastdiff train --data photos --init start.safetensors --lora 2 --out adapted {quick} --quiet")
    assert Path("adapted/lora.safetensors").stat().st_size < Path("start.safetensors").stat().st_size / 2
    run("fastdiff sample -c adapted/lora.safetensors -n 2 -s 2 -o adapted/sampled --no-progress")
    assert np.load("adapted/sampled/samples.npz")["arr_0"].shape == (2, 16, 16, 3)

    said = run(
        f"fastdiff train --data photos --init start.safetensors --out told {quick} --log-every 1 --json"
    )
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len(told) >= 3 and any("loss" in line for line in told)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A published checkpoint of a small network on a server that breaks off once."""
    config = replace(tiny.UNET, image_size=16, attention_resolutions=(8,), num_classes=3)
    torch.save(tiny.build(config).state_dict(), tmp_path / "small.pt")
    server = FileServer((tmp_path / "small.pt").read_bytes())
    (tmp_path / "small.pt").unlink()
    server.plan = ["drop"]
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fastdiff.checkpoint.fetch.WAITS", (0.0,))
    preset = Preset(config, fastdiff.DiffusionConfig(steps=100, schedule="cosine"), "small.pt")
    monkeypatch.setitem(PRESETS, "small", preset)
    monkeypatch.setitem(RELEASED, "small", Released("small", server.folder, len(server.content)))
    yield server
    server.close()


def test_from_a_published_checkpoint_to_pictures(run, published: FileServer) -> None:
    assert run("fastdiff --version") == f"fastdiff {fastdiff.__version__}\n"
    assert "fastdiff fetch small" in run("fastdiff sample -c small", code=2)
    said = run("fastdiff fetch small")
    assert len(published.asked) == 2 and published.asked[1] != "bytes=0-"
    assert Path("cache/small.pt").read_bytes() == published.content

    run(printed_command(said, "sample"), "--steps", 2, "--no-progress")
    said = run("fastdiff sample -c small -n 150 -s 2 -b 75 -o many --classes 0 2 --no-progress")
    assert re.search(r"^estimate +.* s .*GiB", said, re.MULTILINE) and "speed" not in said
    with np.load("many/samples.npz") as archive:
        images, labels = archive["arr_0"], archive["arr_1"]
    assert images.shape == (150, 16, 16, 3) and set(labels.tolist()) == {0, 2} and images.std() > 5
    assert "many/samples.png (the first 100)" in said and Path("many/samples.png").stat().st_size > 1000

    draw("photos", count=20, size=(16, 16))
    message = run("fastdiff evaluate many --reference photos", code=2)
    assert "--inception-weights" in message and "--features" in message and "https://" in message

    run("fastdiff interpolate --seeds 1 2 -c small --class 0 -n 4 -s 2 -o between --no-progress")
    assert np.load("between/interpolation.npz")["arr_0"].shape[-3:] == (16, 16, 3)
    run("fastdiff encode photos/circle/0.png -c small --class 0 -s 3 -o encoded --no-progress")
    assert {path.suffix for path in Path("encoded").iterdir()} == {".png", ".npz"}
    draw("large", ("square",), count=1, size=(24, 20))
    Image.fromarray(np.repeat([[0], [255]], 8, 0).repeat(16, 1).astype(np.uint8)).save("mask.png")
    run(
        "fastdiff inpaint large/square/0.png mask.png -c small --class 1 --fit crop -n 2 -s 3 -o filled --no-progress"
    )
    with np.load("filled/inpaint.npz") as archive:
        assert archive["arr_0"].shape == (2, 16, 16, 3)

    run("fastdiff export whole.safetensors -c small")
    run("fastdiff export folder -c small")
    assert loaded("whole.safetensors")[1] == PRESETS["small"].model
    assert "diffusion_pytorch_model.safetensors" in {path.name for path in Path("folder").rglob("*")}


def test_the_recipe_for_fid(run) -> None:
    """The list of models; sampling, then evaluating the folder that it wrote."""
    (line,) = [line for line in run("fastdiff presets").splitlines() if line.startswith("adm-64 ")]
    assert "295.9 M" in line and "fastdiff fetch adm-64" in line
    run("fastdiff sample --checkpoint fashion-mnist -n 8 -s 3 -o out --png --no-progress")
    Path("out/images").rename("reference")
    assert "FID" in run("fastdiff evaluate out --reference reference")
    numbers = json.loads(Path("out/evaluation.json").read_text())
    assert abs(numbers["metrics"]["fid"]["value"]) < 0.01  # the same images
