"""``fastdiff train`` on data of every kind: what is not given follows from the data, and is said and written down."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import CLASSES, KINDS, picture, write_folder
from PIL import Image

import fastdiff

# A network that names neither image size nor channels nor classes.
MODEL = {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": []}
QUICK = ("--steps", 2, "--batch-size", 4, "--log-every", 1, "--sample-every", 0)


@pytest.fixture
def preset(tmp_path: Path) -> Callable[..., Path]:
    """Writes a .json preset, and returns its path."""

    def write(kind: str = "unet", **options: Any) -> Path:
        path = tmp_path / "net.json"
        diffusion = {"steps": 20, "schedule": "cosine"}
        content = {"kind": kind, "model": {**MODEL, **options}, "diffusion": diffusion}
        path.write_text(json.dumps(content))
        return path

    return write


def run_config(out: Path) -> dict[str, Any]:
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_channels_classes_and_size_follow_the_data(command, preset, tmp_path: Path, kind: str) -> None:
    name, write = KINDS[kind]
    data, out = write(tmp_path / name), tmp_path / "run"
    ended = command("train", "--data", data, "--preset", preset(), "--out", out, *QUICK)
    assert ended.code == 0, ended.err
    model: Any = fastdiff.load(out / "model.safetensors")
    channels = 1 if kind == "idx" else 3
    assert (model.config.image_size, model.config.in_channels, model.config.out_channels) == (
        18,
        channels,
        channels,
    )
    assert model.config.num_classes == 2 and model.config.null_label
    assert model.class_names == (CLASSES if kind in ("folder", "zip") else ())
    shape = f"18x18 {'grey' if channels == 1 else 'RGB'}"
    assert (
        f"{data}: 8 {'grey' if channels == 1 else 'colour'} images of 22x18" in ended.out
        and shape in ended.out
    )
    chosen = run_config(out)
    assert (chosen["image_size"], chosen["channels"], chosen["num_classes"]) == (18, channels, 2)


def test_the_default_preset_on_a_folder_of_photos(command, tmp_path: Path) -> None:
    """The first command of a new user: colour, two classes, a size that the network can halve twice."""
    write_folder(tmp_path / "photos")
    ended = command("train", "--data", tmp_path / "photos", "--out", tmp_path / "run", "--steps", 1, "-b", 2)
    assert ended.code == 0, ended.err
    model: Any = fastdiff.load(tmp_path / "run" / "model.safetensors")
    assert (model.config.image_size, model.config.in_channels, model.config.num_classes) == (16, 3, 2)
    assert model.class_names == CLASSES


@pytest.mark.parametrize(
    ("options", "files", "expected"),
    [
        ({}, {"mode": "L"}, (18, 1, 2)),
        ({}, {"size": (300, 200)}, (64, 3, 2)),
        ({"image_size": 128}, {"size": (300, 200)}, (128, 3, 2)),
        ({"channel_mult": [1, 1, 1, 1]}, {"size": (5, 5)}, (8, 3, 2)),
        ({"image_size": 8, "in_channels": 1, "num_classes": 4}, {}, (8, 1, 4)),
        ({}, {"classes": ("all",)}, (18, 3, None)),
        ({"num_classes": None}, {}, (18, 3, None)),
    ],
    ids=["grey", "large", "preset-larger", "tiny", "preset-explicit", "one-class", "preset-without-classes"],
)
def test_what_follows_and_what_does_not(
    preset,
    tmp_path: Path,
    options: dict[str, Any],
    files: dict[str, Any],
    expected: tuple[int, int, int | None],
) -> None:
    from fastdiff.training import TrainConfig
    from fastdiff.training.prepare import prepare

    data = write_folder(tmp_path / "photos", **files)
    names = () if expected[2] != 4 else ("circle", "square", "triangle", "star")
    config = TrainConfig(data, tmp_path / "run", preset=str(preset(**options)), class_names=names)
    prepared = prepare(config)
    model: Any = prepared.model
    assert (model.image_size, model.in_channels, model.num_classes) == expected
    assert bool(prepared.notes) == (
        files.get("size") == (300, 200) and "image_size" not in options or "classes" in files
    )


def test_what_contradicts_the_data_is_an_error(command, preset, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "photos", classes=("a", "b", "c"))
    ended = command("train", "--data", data, "--preset", preset(num_classes=2), "--out", tmp_path / "run")
    assert ended.code == 2 and "3 class names for 2 classes; give --num-classes 3" in ended.err
    one = write_folder(tmp_path / "one", classes=("a",))
    ended = command("train", "--data", one, "--preset", preset("classifier"), "--out", tmp_path / "run")
    assert ended.code == 2 and "a classifier needs images of at least two classes" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_classifier_and_an_upsampler_follow_too(command, preset, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "photos", size=(24, 24))
    ended = command(
        "train", "--data", data, "--preset", preset("classifier"), "--out", tmp_path / "c", *QUICK
    )
    assert ended.code == 0, ended.err
    found: Any = fastdiff.load(tmp_path / "c" / "model.safetensors")
    assert (found.config.image_size, found.config.in_channels, found.config.num_outputs) == (24, 3, 2)
    ended = command(
        "train", "--data", data, "--preset", preset(low_res="bilinear"), "--out", tmp_path / "u", *QUICK
    )
    assert ended.code == 0, ended.err
    assert fastdiff.load(tmp_path / "u" / "model.safetensors").config.image_size == 24
    assert run_config(tmp_path / "u")["small_size"] == 6


def test_attention_stays_at_its_levels(tmp_path: Path) -> None:
    from fastdiff.training import TrainConfig
    from fastdiff.training.setup import architecture

    def resolutions(preset: str, size: int) -> tuple[int, ...]:
        config = TrainConfig(tmp_path, tmp_path, preset=preset, image_size=size)
        return architecture(config)[0].attention_resolutions

    assert resolutions("fashion-mnist", 28) == (7,) and resolutions("fashion-mnist", 64) == (8,)
    assert resolutions("adm-64", 48) == (24, 12, 6) and resolutions("adm-64", 128) == (32, 16, 8)


def test_a_run_keeps_its_choices_though_the_data_change(command, preset, tmp_path: Path, caplog) -> None:
    data, out = write_folder(tmp_path / "photos"), tmp_path / "run"
    options = ["--data", data, "--preset", preset(), "--out", out, "--batch-size", 4]
    assert command("train", *options, "--steps", 2).code == 0
    before = run_config(out)
    for i in range(20):
        picture(100 + i, size=(60, 60)).save(data / "square" / f"{100 + i}.png")
    ended = command("train", *options, "--steps", 3)
    assert ended.code == 0 and "goes on from step 2" in ended.out
    assert "the data have 28 images now, 8 before" in caplog.text
    assert run_config(out) == {**before, "steps": 3}
    ended = command("train", *options, "--steps", 4, "--image-size", 32)
    assert ended.code == 2 and "trained with image_size = 18, now 32" in ended.err
    assert f"or all options of that run by --config {out / 'config.json'}" in ended.err
    (data / "triangle").mkdir()
    picture(5).save(data / "triangle" / "5.png")
    ended = command("train", *options, "--steps", 4)
    assert (
        ended.code == 2 and "the class 'triangle', which is none of the model's: circle, square" in ended.err
    )


def test_a_config_file_is_read_and_overridden(command, preset, tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "photos"), tmp_path / "run"
    file = tmp_path / "options.json"
    options = {
        "data": str(data),
        "out": str(out),
        "preset": str(preset()),
        "steps": 9,
        "flip": True,
        "quiet": True,
    }
    file.write_text(json.dumps({**options, "ema": [0.5, 0.9], "batch_size": 4, "max_minutes": None}))
    assert command("train", "--config", file, "--steps", 2, "--no-quiet").code == 0
    found = run_config(out)
    assert (found["steps"], found["flip"], found["ema"], found["quiet"]) == (2, True, [0.5, 0.9], False)
    assert (out / "model-ema-0.9.safetensors").exists()
    file.write_text(json.dumps({**options, "stepz": 3}))
    ended = command("train", "--config", file)
    assert ended.code == 2 and "unknown option 'stepz' (did you mean steps?)" in ended.err
    file.write_text(json.dumps({**options, "steps": "many"}))
    ended = command("train", f"--config={file}")
    assert ended.code == 2 and "'many' is not a whole number" in ended.err


def test_python_reads_the_same_file(preset, tmp_path: Path) -> None:
    from fastdiff.errors import FastdiffError
    from fastdiff.training import TrainConfig, read_config, train

    data = write_folder(tmp_path / "photos")
    config = TrainConfig(data, tmp_path / "run", preset=str(preset()), steps=1, batch_size=4, quiet=True)
    train(config)
    again = read_config(tmp_path / "run" / "config.json", steps=2)
    assert again.image_size == 18 and train(again).step == 2
    (tmp_path / "bad.json").write_text('{"data": "x", "out": "y", "fit": "stretch"}')
    with pytest.raises(
        FastdiffError, match="bad.json: fit must be one of crop, random-crop, pad, got 'stretch'"
    ):
        read_config(tmp_path / "bad.json")


def test_the_commands_that_are_printed_run(command, preset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "my photos")
    ended = command("train", "--data", "my photos", "--preset", preset(), "--out", "my run", *QUICK)
    assert ended.code == 0, ended.err
    lines = [line for line in ended.out.splitlines() if " fastdiff " in line]
    names = [line.split()[0] for line in lines]
    assert names == ["sample", "evaluate", "resume"]
    for line in lines:
        program, *argv = shlex.split(line.partition(" ")[2])
        again = command(*argv)
        assert program == "fastdiff" and again.code == 0, again.err
    run = tmp_path / "my run"
    with np.load(run / "sampled" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (16, 18, 18, 3)
    assert json.loads((run / "evaluation" / "bits_per_dim.json").read_text())["images"] == 8
    assert run_config(run)["steps"] == 4 and (run / "checkpoints" / "step-00000004.safetensors").exists()


def test_broken_files_are_found_before_the_first_step(command, preset, tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "photos"), tmp_path / "run"
    broken = data / "square" / "7.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    options = ["--data", data, "--preset", preset(), "--out", out, *QUICK]
    ended = command("train", *options)
    assert ended.code == 2 and str(broken) in ended.err
    assert f"--skip-broken leaves them out, fastdiff data check {data} lists all" in ended.err
    assert not out.exists()
    ended = command("train", *options, "--skip-broken")
    assert ended.code == 0 and f"{data}: 7 colour images" in ended.out and "circle 4, square 3" in ended.out


def test_the_output_where_there_is_no_terminal(command, preset, tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "photos"), tmp_path / "run"
    options = ["--data", data, "--preset", preset(), "--batch-size", 4]
    ended = command("train", *options, "--out", out, "--steps", 4, "--log-every", 2, "--sample-every", 2)
    assert ended.code == 0 and not ended.err and "\r" not in ended.out
    lines = ended.out.splitlines()
    assert [line.partition("  ")[0] for line in lines[:6]] == [
        "data", "classes", "model", "device", "training", "output"
    ]  # fmt: skip
    assert lines[1].endswith("2: circle 4, square 4") and "M parameters" in lines[2] and "float32" in lines[3]
    steps = [line for line in lines if line.startswith("step ") and "loss" in line]
    assert not any(line.startswith("speed") for line in lines)  # the log says it as soon
    assert len(steps) == 2 and all("images/s" in line and line.endswith(" left") for line in steps)
    assert f"step 2 of 4: samples {out / 'samples' / 'step-00000002.png'}" in lines

    ended = command("train", *options, "--out", tmp_path / "early", "--steps", 5, "--sample-every", 0)
    assert re.search(r"^speed      .* images/s, .* left$", ended.out, re.MULTILINE)

    (data / "note.txt").write_text("left out, which --quiet does not say")
    quiet = command("train", *options, "--out", tmp_path / "quiet", "--steps", 1, "--quiet")
    model = tmp_path / "quiet" / "model.safetensors"
    assert quiet.code == 0 and not quiet.err
    assert re.fullmatch(rf"trained 1 steps in [\d.]+ m?s\nwrote   {model}\n", quiet.out)

    events = command("train", *options, "--out", tmp_path / "json", "--steps", 2, "--log-every", 1, "--json")
    found = [json.loads(line) for line in events.out.splitlines()]
    assert events.code == 0
    assert [e["event"] for e in found] == ["start", "log", "log", "samples", "checkpoint", "end"]
    assert found[0]["classes"] == {"circle": 4, "square": 4} and found[0]["input"] == [18, 18, 3]
    assert found[1]["step"] == 1 and found[1]["seconds_left"] >= 0 and found[1]["loss"] > 0
    assert found[-1]["stopped"] is None and Path(found[-1]["model"]).exists()
    assert found[-1]["commands"]["resume"].startswith("fastdiff train --config ")


def test_a_time_limit_stops_like_a_finished_run(command, preset, tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "photos"), tmp_path / "run"
    options = ["--data", data, "--preset", preset(), "--batch-size", 4, "--out", out, "--steps", 10_000]
    ended = command("train", *options, "--max-minutes", 0.02)
    assert ended.code == 0 and not ended.err
    step = int(re.findall(r"stopped after step (\d+) of 10000, after the 0.02 minutes of", ended.out)[0])
    assert f"fastdiff train --config {out / 'config.json'}\n" in ended.out
    assert 0 < step < 10_000 and (out / "checkpoints" / f"step-{step:08d}.safetensors").exists()
    assert fastdiff.load(out / "model.safetensors").class_names == CLASSES
    ended = command("train", "--config", out / "config.json", "--steps", step + 1, "--max-minutes", 5)
    assert (
        ended.code == 0
        and f"trained {step + 1} steps" in ended.out
        and f"goes on from step {step}" in ended.out
    )


def test_samples_have_a_column_for_each_class(command, preset, tmp_path: Path) -> None:
    """Two classes and twelve, of which ten are shown; each tile is 64 pixels wide, with a caption under it."""
    for classes, columns in ((CLASSES, 2), (tuple(f"class {i:02d}" for i in range(12)), 10)):
        data, out = (
            write_folder(tmp_path / str(columns), 12, classes, size=(8, 8)),
            tmp_path / f"run{columns}",
        )
        ended = command("train", "--data", data, "--preset", preset(), "--out", out, "--steps", 1, "-b", 4)
        assert ended.code == 0, ended.err
        with Image.open(out / "samples" / "step-00000001.png") as picture:
            assert picture.size == (columns * 70 + 6, 4 * (64 + 16 + 6) + 6)
            strip = np.asarray(picture)[6 + 64 : 6 + 64 + 16]
        for column in range(columns):  # something is written under each image
            assert (strip[:, 6 + column * 70 : 70 + column * 70] < 128).any()


def test_the_last_checkpoint_is_written_and_told_once(command, preset, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "photos")
    options = ["--data", data, "--preset", preset(), "--batch-size", 4, "--steps", 4, "--checkpoint-every", 2]
    ended = command("train", *options, "--out", tmp_path / "run", "--sample-every", 0)
    assert [line for line in ended.out.splitlines() if ": checkpoint " in line] == [
        f"step {step} of 4: checkpoint {tmp_path}/run/checkpoints/step-{step:08d}.safetensors"
        for step in (2, 4)
    ]


def test_a_terminal_has_a_bar_in_place_of_lines(command, preset, tmp_path: Path, monkeypatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    data = write_folder(tmp_path / "photos")
    options = ["--data", data, "--preset", preset(), "--batch-size", 4, "--steps", 6, "--sample-every", 3]
    ended = command("train", *options, "--out", tmp_path / "run")
    assert ended.code == 0 and "img/s" in ended.err and "\r" not in ended.out
    assert "images/s" in ended.out and "loss" not in ended.out and "step 3 of 6: samples" in ended.out
    ended = command("train", *options, "--out", tmp_path / "plain", "--log-every", 6, "--no-progress")
    assert ended.code == 0 and not ended.err and "step 6 of 6: loss" in ended.out
