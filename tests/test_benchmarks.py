"""The benchmarks run, and what they measure is right."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest

from fastdiff.bench import results
from fastdiff.ops.cases import CASES

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
needs_tyro = pytest.mark.skipif(importlib.util.find_spec("tyro") is None, reason="tyro is not installed")


def _run(*command: str) -> str:
    # pytest-benchmark measures nothing in a worker of pytest-xdist, and knows one by its environment.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = programs.run(*command, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_suite_runs_once() -> None:
    """The smaller of its cases; compilers take seconds for each."""
    small = "(64x1x32x32 or T64 or fashion or 4x256x16x16) and not compile"
    assert " passed" in _run("-m", "pytest", str(BENCHMARKS), "--benchmark-disable", "-k", small)


@needs_tyro
@pytest.mark.proof
def test_suite_writes_what_its_pictures_need(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    chosen = "test_ops and (4096x20 or B4-H4-T64)"
    printed = _run(
        str(BENCHMARKS / "suite.py"), "--out", str(tmp_path), "-k", chosen, "--benchmark-max-time=0.01"
    )
    (file,) = tmp_path.glob("suite-*.json")
    content = json.loads(file.read_text())
    sides = {(b["extra_info"]["what"], b["extra_info"]["side"]) for b in content["benchmarks"]}
    assert sides >= {("attention", "eager"), ("attention", "compiled"), ("bernoulli_step", "cpu")}
    for entry in content["benchmarks"]:
        assert entry["extra_info"]["bytes"] > 0 and entry["extra_info"]["flops"] > 0
        assert "data" not in entry["stats"] and entry["stats"]["min"] <= entry["stats"]["median"]
    about = content["about"]
    assert about["copy_gb_per_s"].keys() == {"memory", "cache"} and about["matmul_gflops"]["float32"] > 0
    for picture in ("bars.png", "roofline.png"):
        assert f"wrote {tmp_path / picture}" in printed
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@needs_tyro
def test_durability_counts_how_runs_end() -> None:
    """Only sampling is tested, which is quick; the whole series takes minutes."""
    printed = _run(
        str(BENCHMARKS / "durability.py"),
        "--only",
        "sample",
        "--kills",
        "1",
        "--damages",
        "2",
        "--fills",
        "2",
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "sample, killed",
        "sample, samples.parts/0N.npz damaged",
        "sample, samples.parts/settings.json damaged",
        "sample, disk full",
    ]
    for (*_, same, refused, wrong, broken), count in zip(rows, (1, 2, 2, 2), strict=True):
        assert int(same) + int(refused) == count and wrong == broken == "0"


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "results").glob("suite-*.json")), ids=lambda f: f.stem)
def test_suite_results_are_of_all_kinds(file: Path) -> None:
    content = json.loads(file.read_text())
    groups = {(b["extra_info"]["kind"], b["extra_info"]["side"].split(",")[0]) for b in content["benchmarks"]}
    assert groups >= {(kind, side) for kind in ("model", "training") for side in ("eager", "fastdiff")}
    assert ("op", "eager") in groups and ("op", "compiled") in groups
    assert {"backend", "torch", "fastdiff"} <= content["about"].keys()


def test_cases_of_the_suite_are_counted() -> None:
    assert all(case.elements and case.flops for case in CASES if case.benchmark)


@needs_tyro
@pytest.mark.parametrize(
    ("only", "row"),
    [
        ("bernoulli_step", "| bernoulli_step | forward | 4096x20 | bfloat16 |"),
        ("adamw_ema fashion", "| adamw_ema | forward | fashion-mnist-2-averages-bfloat16-copy | float32 |"),
    ],
)
def test_ops_prints_a_table_for_one_op(only: str, row: str) -> None:
    printed = _run(str(BENCHMARKS / "ops.py"), "--only", only, "--rounds", "1")
    assert "times as fast as eager" in printed and row in printed and "left out" not in printed


@needs_tyro
def test_models_prints_a_table() -> None:
    printed = _run(
        str(BENCHMARKS / "models.py"), "--settings", "fashion-mnist:1", "--rounds", "1", "--seconds", "0.01"
    )
    assert "| fastdiff | bfloat16 |" in printed and "conv2d 3x3" in printed


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "results").glob("models-*.json")), ids=lambda f: f.stem)
def test_models_results_fit_together(file: Path) -> None:
    content = json.loads(file.read_text())
    for setting in content["settings"]:
        kept = (setting["preset"], setting["batch"])
        eager, *rows = [row for row in content["rows"] if (row["preset"], row["batch"]) == kept]
        assert (eager["side"], eager["dtype"]) == ("eager", "float32")
        for row in rows:
            assert row["ratio"] == pytest.approx(eager["seconds"]["median"] / row["seconds"]["median"])
        for shares in setting["profile"].values():
            assert sum(shares.values()) == pytest.approx(1)


@needs_tyro
@pytest.mark.proof
def test_interop_prints_a_table() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    printed = _run(str(BENCHMARKS / "interop.py"), "--small", "--rounds", "1")
    assert (
        "DPMSolverMultistepScheduler.step" in printed
        and "channels_last, batch 4: forward and backward" in printed
    )


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Options of a program that compares samples: a few random images are the data, and files are written here."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32), dtype=np.uint8)
    data, kept = tmp_path / "data.npz", tmp_path / "kept"
    np.savez(data, images=pixels, labels=np.arange(30) % 10)
    return ["--reference", str(data), "--real", str(data), "--kept-in", str(kept)]


@needs_tyro
@pytest.mark.proof
def test_samplers_prints_a_table_and_is_drawn(tmp_path: Path, places: list[str]) -> None:
    results = str(tmp_path / "samplers.json")
    command = [str(BENCHMARKS / "samplers.py"), "--n", "12", "--nfe", "2", *places, "--results", results]
    printed = _run(*command)
    assert "| dpmpp | 2 | 2 |" in printed and "| heun | 1 | 1 |" in printed and "| real images |" in printed
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 5
    _run(str(BENCHMARKS / "plots.py"), results, str(tmp_path))
    assert (tmp_path / "samplers.png").stat().st_size > 10_000


@needs_tyro
@pytest.mark.proof
def test_few_steps_prints_a_table_and_is_drawn(tmp_path: Path, places: list[str]) -> None:
    results, few = str(tmp_path / "few_steps.json"), ["--few", "1", "2", "--samplers", "dpmpp"]
    options = [*few, "--batch", "2", "--rounds", "1", "--pictures-in", str(tmp_path), "--results", results]
    printed = _run(str(BENCHMARKS / "few_steps.py"), "--n", "12", "--nfe", "2", *places, *options)
    assert "| dpmpp | 2 | 2 |" in printed and "| consistency | 1 | 1 |" in printed
    assert "fashion-mnist, 20 steps: " in printed and "fashion-mnist-few, 2 steps: " in printed
    _run(str(BENCHMARKS / "plots.py"), results, str(tmp_path))
    for name in ("few_steps.png", "few_steps_samples.png", "few_steps_editing.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@needs_tyro
@pytest.mark.proof
def test_emoji_draws_its_pictures(tmp_path: Path) -> None:
    results = tmp_path / "emoji.json"
    options = ["--rows", "1", "--rounds", "1", "--pictures-in", str(tmp_path), "--results", str(results)]
    printed = _run(str(BENCHMARKS / "emoji.py"), *options)
    assert "emoji: " in printed and "emoji-upsampler: " in printed and "128 pixels, 8 steps" in printed
    for name in ("emoji", "emoji_cascade", "emoji_guidance", "emoji_samplers"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert json.loads(results.read_text())["rows"]["emoji"]["seconds_per_image"] > 0


@needs_tyro
def test_the_loss_of_a_log_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    _run(str(BENCHMARKS / "plots.py"), str(BENCHMARKS / "results" / "fashion_mnist_log.jsonl"), str(tmp_path))
    assert (tmp_path / "fashion_mnist_loss.png").stat().st_size > 10_000


def test_two_steps_are_nearly_as_good_as_twenty_of_the_teacher() -> None:
    """Half more FID at most, precision and recall within 0.1 of it, and several times as many images a second."""
    (file,) = (BENCHMARKS / "results").glob("few_steps-*.json")
    content = json.loads(file.read_text())
    rows = {(row["model"], row["sampler"], row["nfe"]): row for row in content["rows"]}
    few, taught = rows["fashion-mnist-few", "consistency", 2], rows["fashion-mnist", "dpmpp", 20]
    assert few["fid"] <= 1.5 * taught["fid"]
    for metric in ("precision", "recall"):
        assert few[metric] > taught[metric] - 0.1
    before, after = (row["images_per_second"] for row in content["speed"])
    assert after > 5 * before


@needs_tyro
@pytest.mark.proof
def test_sampler_updates_prints_a_row_of_every_sampler() -> None:
    from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS

    printed = _run(str(BENCHMARKS / "sampler_updates.py"), "--rounds", "1")
    assert all(f"| `{sampler}` |" in printed for sampler in DIFFUSION_SAMPLERS)


def test_sampler_results_are_complete() -> None:
    """Every sampler at the same numbers of calls, or one below where a step takes two."""
    (file,) = (BENCHMARKS / "results").glob("samplers-*.json")
    content = json.loads(file.read_text())
    assert content["about"]["features"] == "fashion-mnist-classifier"
    calls: dict[str, list[int]] = {}
    for row in content["rows"]:
        calls.setdefault(row["sampler"], []).append(row["nfe"])
        assert row["fid"] > content["real"]["fid"], "no sampler is better than real images"
    assert len({tuple(-(-n // 5) for n in found) for found in calls.values()}) == 1


def test_decision_prints_its_tables() -> None:
    printed = _run(str(BENCHMARKS / "decision.py"), "--small", "--rounds", "1")
    assert "| exact |" in printed and "| fastdiff |" in printed and "| fastdiff, log_pdf |" in printed


DRY = (str(BENCHMARKS / "gpu.py"), "--dry-run", "--device", "cpu", "--results")


def _rows(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("gpu-*-dry-run.json")
    return json.loads(file.read_text())["rows"]


def test_gpu_goes_on_where_it_was(tmp_path: Path) -> None:
    """One part of ``make gpu`` on tiny sizes: a second run does not measure its rows again."""
    assert "attention" in _run(*DRY, str(tmp_path), "--part", "attention")
    rows = _rows(tmp_path)
    assert {key.partition("/")[0] for key in rows} == {"attention"}
    assert _run(*DRY, str(tmp_path), "--part", "attention") and _rows(tmp_path) == rows


@pytest.mark.proof
def test_gpu_runs_dry(tmp_path: Path) -> None:
    """The script of ``make gpu`` on tiny sizes: every part leaves rows, which a second run does not measure again."""
    command = [*DRY, str(tmp_path)]
    table = tmp_path / "table.json"
    printed = _run(*command, "--table", str(table))
    (file,) = tmp_path.glob("gpu-*-dry-run.json")
    content = json.loads(file.read_text())
    parts = {key.partition("/")[0] for key in content["rows"]}
    assert parts >= {
        "tests",
        "ceilings",
        "ops",
        "ops-compile",
        "attention",
        "models",
        "models-compile",
        "training",
    }
    assert set(content["skipped"]) == {"sanitizer/all"}
    for row in content["rows"].values():
        for seconds in row["seconds"].values() if isinstance(row.get("seconds"), dict) else ():
            assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
    assert "| group_norm_silu | forward | bfloat16 | 2 |" in printed and "sampling, ms a step" in printed
    (device,) = json.loads(table.read_text())["devices"].values()
    assert device["ops"]["reverse_step"].keys() == {"float32"}, "the state's dtype"
    assert set(device["ops"]["attention_training"].values()) <= {"cpu", "eager", "eager:flash"}
    assert _run(*command, "--part", "ops", "attention", "models", "training")
    assert _rows(tmp_path) == content["rows"]


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "results").glob("gpu-*.json")), ids=lambda f: f.stem)
def test_gpu_results_are_of_a_gpu(file: Path) -> None:
    content = json.loads(file.read_text())
    assert content["about"]["capability"] and not content["about"]["dry"]
    assert {"torch", "cuda", "triton", "sources", "date"} <= content["about"].keys()


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "results").glob("ops-*.json")), ids=lambda f: f.stem)
def test_ops_results_fit_together(file: Path) -> None:
    for row in json.loads(file.read_text())["rows"]:
        eager, own = (row["seconds"][side]["median"] for side in ("eager", "fastdiff"))
        assert row["ratio"] == pytest.approx(eager / own)


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda f: f.stem)
def test_results_say_where_they_come_from(file: Path) -> None:
    """``<program>-<machine>.json``: program, command and machine are in the file, and a row is a line."""
    content = json.loads(file.read_text())
    program, _, machine = file.stem.partition("-")
    assert content["about"]["program"] == program and (BENCHMARKS / f"{program}.py").exists()
    assert re.fullmatch("[a-z0-9-]+", machine)
    assert {"command", "processor", "torch"} <= content["about"].keys()
    assert file.read_text() == results.text(content)
    assert max(len(line) for line in file.read_text().splitlines()) < 2000


PROGRAMS = {path.stem for path in BENCHMARKS.glob("*.py") if not path.stem.startswith(("test_", "conftest"))}


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_program_is_in_the_table(program: str) -> None:
    assert f"| `{program}.py` |" in (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()


@needs_tyro
def test_training_memory_is_as_predicted() -> None:
    printed = _run(
        str(BENCHMARKS / "memory.py"), "--presets", "fashion-mnist", "--rounds", "1", "--batch", "2"
    )
    (selective,) = [line.split("|") for line in printed.splitlines() if "| selective |" in line]
    assert float(selective[4]) == pytest.approx(float(selective[3]), rel=0.03)
