"""Mistakes end in one line on stderr and exit code 2, with nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastdiff.cli.commands import FASTDIFF

BAD_SAMPLE = {
    "missing-checkpoint": (["--checkpoint", "nowhere.pt"], "no checkpoint at nowhere.pt; give"),
    "truncated-checkpoint": (["--checkpoint", "@truncated"], "is broken or no safetensors file"),
    "no-checkpoint-at-all": (["--checkpoint", "@text"], "must end in .safetensors or .pt"),
    "other-network": (["--checkpoint", "@other-network"], "is not an ADM-class model"),
    "wrong-architecture": (["--checkpoint", "@tiny", "--preset", "adm-64"], "does not fit its configuration"),
    "malicious-checkpoint": (["--checkpoint", "@malicious"], "is refused"),
    "classifier": (["--checkpoint", "@classifier"], "is a classifier"),
    "super-resolution": (["--checkpoint", "@low-res"], "enlarges small images"),
    "unknown-preset": (["--preset", "adm-63"], "unknown preset 'adm-63'; known: "),
    "released-but-not-bundled": (["--checkpoint", "adm-64"], "fastdiff fetch adm-64"),
    "nan-model": (["--checkpoint", "@nan"], "NaN or Inf at step 1 of 3"),
    "unknown-class": (["--classes", "hexagon"], "unknown class 'hexagon'; known: circle, Square"),
    "class-number-too-large": (["--classes", "3"], "unknown class '3'; known: "),
    "class-superscript": (["--classes", "²"], "unknown class '²'"),
    "negative-class": (["--classes", "-1"], "unknown class '-1'"),
    "classes-of-unconditional": (["--checkpoint", "@unconditional", "--classes", "1"], "leave out --classes"),
    "unknown-sampler": (
        ["--sampler", "dpmp"],
        "(did you mean dpmpp?); see fastdiff sample --help",
    ),
    "no-steps": (["--steps", "0"], "from 1 to 100, got '0'"),
    "too-many-steps": (["--steps", "101"], "from 1 to 100, got '101'"),
    "steps-no-number": (["--steps", "abc"], "got 'abc'"),
    "too-many-ddim-steps": (["--sampler", "ddim", "--steps", "101"], "101"),
    "no-images": (["--n", "0"], "n must be at least 1, got 0"),
    "images-no-number": (["--n", "many"], "--n: 'many' is not a whole number; see fastdiff sample --help"),
    "no-batch": (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
    "negative-seed": (["--seed", "-1"], "from 0 to 4294967295, got -1"),
    "eta-of-dpmpp": (["--eta", "0.5"], "sampler 'dpmpp' has no eta; ddim, euler_ancestral"),
    "churn-of-ddim": (["--sampler", "ddim", "--s-churn", "4"], "has no s_churn; euler, heun and dpm_2 have"),
    "order-of-lms": (
        ["--sampler", "lms", "--order", "5"],
        "the order of LMS must be a whole number from 1 to 4",
    ),
    "consistency-of-diffusion": (["--sampler", "consistency"], "is for consistency models"),
    "sigmas-repeated": (["--sigmas", "9", "1", "1", "0"], "sigmas must not repeat, but 1 does"),
    "sigmas-rising": (["--sigmas", "1", "9", "0"], "sigmas must descend, but 9 comes after 1"),
    "sigmas-without-0": (["--sigmas", "9", "1"], "sigmas must end with 0, the clean image, got 1"),
    "no-interval": (
        ["--sigma-min", "3", "--sigma-max", "2"],
        "sigma_min must be below sigma_max, got 3 and 2",
    ),
    "ends-of-timesteps": (["--spacing", "beta", "--sigma-max", "2"], "has ends of its own"),
    "rho-of-logsnr": (["--spacing", "logsnr", "--rho", "3"], "has no rho; karras"),
    "eta-too-large": (["--sampler", "ddim", "--eta", "1.5"], "between 0"),
    "guidance-without-null-class": (
        ["--checkpoint", "@unnamed", "--guidance-scale", "2"],
        "trained with a null class",
    ),
    "infinite-guidance": (["--guidance-scale", "inf"], "must be a finite number, got inf"),
    "unknown-device": (["--device", "abacus"], "device 'abacus' cannot be used"),
    "absent-device": (["--device", "cuda:77"], "device 'cuda:77' cannot be used"),
    "device-without-memory": (["--device", "meta"], "device 'meta' cannot be used"),
    "unknown-dtype": (["--dtype", "int8"], "--dtype: 'int8' is none of float32, bfloat16"),
    "unknown-option": (
        ["--stesp", "3"],
        "unknown option --stesp (did you mean --steps?); see fastdiff sample",
    ),
    "option-without-value": (["--n"], "--n needs a value"),
}

COMMANDS = ", ".join(FASTDIFF.commands)


@pytest.mark.parametrize(("options", "message"), BAD_SAMPLE.values(), ids=BAD_SAMPLE)
def test_sample(command, checkpoints, tmp_path, options: list[str], message: str) -> None:
    out = tmp_path / "out"
    named = [str(checkpoints[o[1:]]) if o.startswith("@") else o for o in options]
    base = ["--checkpoint", checkpoints["tiny"], "--steps", 3, "--no-progress", "--out", out]
    options = [o for o in base if "--checkpoint" not in named or o not in base[:2]] + named
    _assert_one_line(command("sample", *options), message)
    assert not out.exists() or not list(out.iterdir())
    assert not (checkpoints["malicious"].parent / "attacked").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", "it is a file"), ("file/below", "Not a directory"), ("full", "is a folder")],
    ids=["out-is-a-file", "out-below-a-file", "a-folder-in-its-place"],
)
def test_place_that_cannot_be_written(
    command, checkpoints, tmp_path: Path, monkeypatch, place: str, message: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a terminal, which has progress bars
    (tmp_path / "file").touch()
    (tmp_path / "full" / "samples.png").mkdir(parents=True)
    ended = command("sample", "--checkpoint", checkpoints["tiny"], "--steps", 3, "--out", tmp_path / place)
    _assert_one_line(ended, message)
    assert "step/s" not in ended.err  # told before the work
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "samples.png"]


BAD_TRAIN = {
    "no-options": ([], "missing: --data PATH, --out PATH; see fastdiff train --help"),
    "missing-data": (["--data", "nowhere", "--out", "OUT"], "no data at nowhere; give a folder"),
    "unknown-preset": (["--data", "DATA", "--out", "OUT", "--preset", "adm-63"], "unknown preset 'adm-63'"),
    "no-steps": (["--data", "DATA", "--out", "OUT", "--steps", "0"], "steps must be at least 1, got 0"),
    "steps-no-number": (["--data", "DATA", "--out", "OUT", "--steps", "x"], "--steps: 'x' is not a whole"),
    "size-no-number": (["--data", "DATA", "--out", "OUT", "--image-size", "x"], "'x' is not a whole number"),
    "lr-no-number": (["--data", "DATA", "--out", "OUT", "--lr", "x"], "--lr: 'x' is not a number"),
    "out-is-a-file": (["--data", "DATA", "--out", "DATA"], "cannot write to"),
    "unknown-device": (["--data", "DATA", "--out", "OUT", "--device", "abacus"], "device 'abacus' cannot"),
    "unknown-backend": (
        ["--data", "DATA", "--out", "OUT", "--backend", "gpu"],
        "--backend: 'gpu' is none of auto, ",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD_TRAIN.values(), ids=BAD_TRAIN)
def test_train(command, tmp_path, options: list[str], message: str) -> None:
    import numpy as np

    data = tmp_path / "data.npz"
    np.savez(data, images=np.zeros((4, 32, 32), np.uint8), labels=np.arange(4))
    places = {"DATA": str(data), "OUT": str(tmp_path / "out")}
    _assert_one_line(command("train", *(places.get(o, o) for o in options)), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [],
            "give a command: " + COMMANDS + "; see fastdiff --help",
        ),
        (
            ["smaple"],
            f"unknown command 'smaple' (did you mean sample?); known: {COMMANDS}; see fastdiff --help",
        ),
        (["--verson"], "unknown option --verson; a command comes first: "),
        (["info", "extra"], "unexpected argument 'extra'; see fastdiff info --help"),
    ],
    ids=["nothing", "unknown-command", "unknown-option", "too-much"],
)
def test_command_line(command, argv: list[str], message: str) -> None:
    _assert_one_line(command(*argv), message)


def _assert_one_line(ended, message: str) -> None:
    line = ended.err.removesuffix("\n")
    assert line.startswith("fastdiff: ") and "\n" not in line
    assert message in line
    assert ended.code == 2
    assert not ended.out
