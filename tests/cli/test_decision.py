"""``fastdiff decision``: files in, files out, and mistakes in one line."""

from __future__ import annotations

import csv
import json
import math
import sys

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("tyro", reason="tyro is not installed")
    from fastdiff.cli import main

    path = tmp_path_factory.mktemp("decision") / "new" / "trials.csv"
    options = ["--v", "0.3", "1.5", "--a", "1.4", "--z", "0.45", "--t0", "0.25", "--n", "700", "--seed", "3"]
    assert main(["decision", "simulate", *options, "--out", str(path)]) == 0
    return path


def test_simulate(command, trials, tmp_path) -> None:
    with open(trials, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == ["0.3"] * 700 + ["1.5"] * 700
    assert {row["choice"] for row in rows} == {"0", "1"} and all(float(row["rt"]) > 0.25 for row in rows)
    out = tmp_path / "t.csv"
    options = ["--v", 0.5, "--n", 300, "--method", "bridge", "--dt", 0.01, "--t-max", 0.5, "--sv", 0.2]
    ended = command("decision", "simulate", *options, "--out", out)
    assert ended.code == 0 and f"wrote      {out}" in ended.out and "300 trials" in ended.out
    with open(out, newline="") as file:
        late = [row for row in csv.DictReader(file) if row["choice"] == "-1"]
    assert late and all(math.isinf(float(row["rt"])) for row in late)


def test_fit(command, trials, tmp_path) -> None:
    pytest.importorskip("scipy.optimize", reason="scipy is not installed")
    out = tmp_path / "fit.json"
    ended = command("decision", "fit", trials, "--out", out)
    assert ended.code == 0 and "optimiser       converged" in ended.out
    found = json.loads(out.read_text())
    assert found["conditions"] == ["0.3", "1.5"] and found["trials"] == 1400
    assert found["estimates"]["v"] == pytest.approx([0.3, 1.5], abs=0.35)
    assert found["estimates"]["a"] == pytest.approx(1.4, abs=0.1)


def test_plot(command, trials, tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ended = command("decision", "plot", trials, "--walks", 3, "--out", tmp_path / "pictures")
    assert ended.code == 0
    for name in ("decision_paths.png", "quantile_probability.png"):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.width > 800 and len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20


def test_other_columns_and_words(command, tmp_path) -> None:
    path = tmp_path / "words.csv"
    lines = [
        f"{0.4 + 0.01 * i},{'Upper' if i % 3 else 'lower'},{'hard' if i % 2 else 'easy'}" for i in range(60)
    ]
    path.write_text("rt,choice,difficulty\n" + "\n".join([*lines, "inf,-1,easy"]) + "\n")
    out = tmp_path / "fit.json"
    ended = command(
        "decision", "fit", path, "--condition", "difficulty", "--free", "v", "a", "t0", "--out", out
    )
    assert ended.code == 0 and "1 without a decision left out" in ended.out
    assert json.loads(out.read_text())["conditions"] == ["easy", "hard"]


def test_any_columns_and_coding(command, tmp_path) -> None:
    """Milliseconds, correct and error, a missing word, bad rows and a range: counted, and the fit is the same."""
    path, out = tmp_path / "raw.csv", tmp_path / "fit.json"
    rows = [(400 + 10 * i, "correct" if i % 3 else "error") for i in range(60)]
    lines = [f"{t},{word}" for t, word in rows] + ["oops,correct", "50,error", "NA,NA"]
    path.write_text("RT,acc\n" + "\n".join(lines) + "\n")
    given = ["--rt", "RT", "--response", "acc", "--unit", "ms", "--coding", "upper=correct", "lower=error"]
    given += ["--skip-bad", "--rt-range", 0.2, 5, "--fix", "z=0.5", "--deadline", 3, "--out", out]
    ended = command("decision", "fit", path, *given)
    assert ended.code == 0 and "1 rows left out: cannot be used" in ended.out
    assert "1 rows left out: outside the range of rt" in ended.out
    found = json.loads(out.read_text())
    assert found["trials"] == 61 and found["missing"] == 1 and found["estimates"]["z"] == 0.5
    path.write_text(
        "rt,choice\n" + "\n".join(f"{t / 1000},{1 if word == 'correct' else -1}" for t, word in rows)
    )
    minus = command(
        "decision", "fit", path, "--coding", "upper=1", "lower=-1", "--fix", "z=0.5", "--out", out
    )
    assert minus.code == 0 and json.loads(out.read_text())["trials"] == 60


def test_subjects(command, tmp_path) -> None:
    """A table and a picture beside the JSON file; and the group."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path, out = tmp_path / "subjects.csv", tmp_path / "fit.json"
    lines = [f"s{i % 3},{0.4 + 0.007 * (i * 37 % 97)},{int(i % 4 > 0)}" for i in range(150)]
    path.write_text("subject,rt,choice\n" + "\n".join(lines) + "\n")
    given = [path, "--subject", "subject", "--fix", "z=0.5", "t0=0.2", "--out", out]
    ended = command("decision", "fit", *given)
    assert ended.code == 0 and "3 of 3 subjects converged" in ended.out
    assert set(json.loads(out.read_text())["subjects"]) == {"s0", "s1", "s2"}
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["parameter"] for row in rows} == {"v", "a"}
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 300
    group = command("decision", "fit", *given, "--hierarchical")
    assert group.code == 0 and "log-evidence" in group.out
    assert set(json.loads(out.read_text())["group"]) == {"v", "a"}


def test_posterior(command, trials, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Summary, draws and picture, with normal draws in place of the sampler's."""
    az = pytest.importorskip("arviz", reason="arviz is not installed")
    import numpy as np

    from fastdiff.decision import posterior

    def draws(function, size, progress, *, chains, draws, **settings):
        progress(1, chains * draws)
        u = np.random.default_rng(0).normal(size=(chains, draws, size))
        return u, {"diverging": np.zeros(u.shape[:2], dtype=bool)}

    monkeypatch.setattr(posterior, "_nuts", draws)
    out = tmp_path / "new" / "posterior.json"
    ended = command("decision", "posterior", trials, "--fix", "z=0.45", "--draws", 60, "--out", out)
    assert ended.code == 0 and "elpd_loo" in ended.out and "4 chains of 60 draws" in ended.out
    found = json.loads(out.read_text())
    assert found["parameters"]["a"]["mean"] == pytest.approx(1.4, abs=0.1) and found["divergences"] == 0
    assert az.from_netcdf(out.with_suffix(".nc")).posterior["v"].shape == (4, 60, 2)
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 500 and len(set(picture.convert("L").resize((64, 64)).tobytes())) > 20


def test_posterior_without_its_libraries(command, trials, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    ended = command("decision", "posterior", trials, "--out", tmp_path / "posterior.json")
    _assert_one_line(ended, "full posteriors need ArviZ and nutpie: pip install 'fastdiff[posterior]'")


FILES = {
    "no-rt": ("time,choice\n1,1\n", "has no column 'rt'; it has: time, choice"),
    "no-choice": ("rt\n1\n", "has no column 'choice'"),
    "empty": ("", "has no column 'rt'; it has: none"),
    "no-trials": ("rt,choice\n", "holds no trial with a decision"),
    "nan": ("rt,choice\nnan,1\n", "line 2: rt must be a positive number of seconds, got 'nan'"),
    "negative": ("rt,choice\n0.5,1\n-0.5,1\n", "line 3: rt must be a positive number of seconds, got '-0.5'"),
    "text": ("rt,choice\nfast,1\n", "line 2: rt must be a positive number of seconds, got 'fast'"),
    "short-row": ("rt,choice\n0.5\n", "line 2: choice must be 1 or 'upper', 0 or 'lower'"),
    "two": ("rt,choice\n0.5,2\n", "got '2'"),
    "minus-one": ("rt,choice\n0.5,-1\n", "write the lower boundary as 0"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_bad_files(command, tmp_path, content: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    _assert_one_line(command("decision", "fit", path, "--out", tmp_path / "out" / "fit.json"), message)
    assert not (tmp_path / "out").exists()


def test_binary_file(command, tmp_path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b"rt,choice\n\xff\xfe\x00,1\n")
    _assert_one_line(command("decision", "fit", path), "is no CSV file of text")


BAD = {
    "nothing": ([], "give a command: simulate, fit, posterior, plot; see fastdiff decision --help"),
    "no-file": (["fit"], "missing: PATH; see fastdiff decision fit --help"),
    "absent-file": (["fit", "nowhere.csv"], "cannot read nowhere.csv: No such file or directory; give a CSV"),
    "absent-column": (
        ["fit", "TRIALS", "--condition", "level"],
        "has no column 'level'; it has: condition, rt",
    ),
    "unknown-free": (["fit", "TRIALS", "--free", "v", "w"], "--free: 'w' is none of v, a, z, t0"),
    "too-little-free": (["fit", "TRIALS", "--free", "a", "t0"], "v is neither free nor fixed"),
    "fix": (["fit", "TRIALS", "--fix", "z"], "--fix takes NAME=VALUE, got 'z'"),
    "fix-number": (["fit", "TRIALS", "--fix", "z=half"], "--fix: 'half' is not a number"),
    "bounds": (["fit", "TRIALS", "--bounds", "z=0.4"], "--bounds takes NAME=LOW:HIGH, got '0.4'"),
    "coding": (
        ["fit", "TRIALS", "--coding", "left=1"],
        "coding is made of upper=, lower= and missing=, got 'left'",
    ),
    "subject": (["fit", "TRIALS", "--subject", "who"], "has no column 'who'"),
    "hierarchical": (["fit", "TRIALS", "--hierarchical"], "--hierarchical needs --subject"),
    "unknown-condition": (["plot", "TRIALS", "--show", "9"], "has no condition '9'; it has: 0.3, 1.5"),
    "no-walks": (["plot", "TRIALS", "--walks", "0"], "walks must be at least 1, got 0"),
    "no-boundary": (["simulate", "--a", "0"], "a must be positive: the boundaries lie at 0 and a, got 0"),
    "start-outside": (["simulate", "--z", "1.5"], "must lie between 0 and 1, got 1.5"),
    "no-noise": (["simulate", "--s", "0"], "s (the noise) must be positive, got 0"),
    "no-trials": (["simulate", "--n", "0"], "n must be at least 1, got 0"),
    "nan": (["simulate", "--v", "nan"], "v must be finite, got nan"),
    "no-step": (["simulate", "--method", "euler", "--dt", "0"], "dt must be a positive number of seconds"),
    "no-number": (["simulate", "--a", "wide"], "--a: 'wide' is not a number"),
    "out-below-a-file": (["simulate", "--n", "3", "--out", "TRIALS/below.csv"], "cannot write to"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options(command, trials, tmp_path, monkeypatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    named = [o.replace("TRIALS", str(trials)) for o in options]
    _assert_one_line(command("decision", *named), message)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(command, trials, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _assert_one_line(
        command("decision", "plot", trials), "pictures need matplotlib: pip install 'fastdiff[decision]'"
    )


def _assert_one_line(ended, message: str) -> None:
    line = ended.err.splitlines()[-1] if ended.err else ""  # a progress bar may stand before it
    assert line.startswith("fastdiff: ") and message in line
    assert ended.code == 2
    assert not ended.out


def test_simulate_boundaries_that_close(command, tmp_path) -> None:
    """Walks that end where linear boundaries meet, and the words for a wrong shape."""
    out = tmp_path / "trials.csv"
    ended = command(
        "decision", "simulate", "--v", 0.5, "--closing", "linear", "--closing-scale", 0.8, "--leak", 0.5,
        "--dt", 0.01, "--n", 400, "--seed", 1, "--out", out, "--no-progress",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "(bridge)" in ended.out and "            -" in ended.out
    rows = list(csv.DictReader(out.open()))
    times = [float(row["rt"]) for row in rows]
    assert len(rows) == 400 and {row["choice"] for row in rows} == {"0", "1"}
    assert min(times) > 0.3 and max(times) <= 1.1 + 1e-6
    ended = command("decision", "simulate", "--closing", "weibull", "--closing-shape", 0.5, "--out", out)
    assert ended.code == 2 and "a shape of at least 1" in ended.err
