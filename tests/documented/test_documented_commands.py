"""Every command that a page shows is run as it is printed, in a reduced form, or has a reason why not."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pages
import pytest

pytest.importorskip("tyro", reason="tyro is not installed")

from fastdiff.cli import main
from fastdiff.cli.commands import FASTDIFF, Group, command_type, find


@dataclass(frozen=True)
class Run:
    """Run what matches, with these options in place of its own; those without a value have an empty one."""

    pattern: str
    options: dict[str, str] = field(default_factory=dict, hash=False)
    proof: bool = False


@dataclass(frozen=True)
class Left:
    """Why what matches is not run here."""

    pattern: str
    reason: str


_CPU = {"--device": "cpu"}
_SAMPLE = {**_CPU, "--n": "4", "--steps": "2", "--batch-size": "4", "--no-progress": ""}
_TRAIN = {
    **_CPU,
    "--sample-every": "0",
    "--steps": "2",
    "--batch-size": "4",
    "--workers": "0",
    "--precision": "float32",
}
_DPM2015 = {"--iterations": "1", "--batch-size": "2", "--steps": "4"}
_IMAGES = {**_DPM2015, "--width": "8", "--layers": "1", "--trajectories": "1"}

# The first row that matches counts. Options are reduced only where a command would take longer than a second or two.
TABLE: tuple[Run | Left, ...] = (
    Left(r"make .*", "builds and runs this suite, or the benchmarks"),
    Left(r"pip install .*", "needs the network"),
    Left(r"pytest benchmarks .*", "tests/test_benchmarks.py runs the suite"),
    Left(r"python benchmarks/.*", "tests/test_benchmarks.py runs the programs"),
    Left(r"python examples/emoji_pictures.py .*", "tests/test_emoji_pictures.py runs it"),
    Left(r"(fastdiff demo|FASTDIFF_SCREENSHOTS=).*", "tests/cli/test_demo_in_browser.py opens the page"),
    Left(r"mkdir -p .*", "no command of fastdiff's"),
    Left(r"(torchrun .* )?fastdiff run scripts/.*", "tests/interop/test_guided_scripts.py runs such scripts"),
    Left(r"torchrun --nnodes=2 .*", "needs two machines; the line above it is run"),
    Left(r"torchrun .* fastdiff train --device cuda \.\.\.", "the same with its options is run"),
    Run(r"fastdiff --tyro-print-completion (bash|zsh) .*"),
    Run(r"fastdiff sample .*--weights 0\.9999", {**_SAMPLE, "--weights": "raw"}),  # that run had one average
    Run(r"(torchrun .* )?fastdiff sample .*", _SAMPLE),
    Run(r"fastdiff inpaint .*", {**_CPU, "--n": "1", "--steps": "2", "--no-progress": ""}),
    Run(r"fastdiff (interpolate|encode) .*", {**_CPU, "--steps": "3", "--no-progress": ""}),
    Run(r"fastdiff export \S*\.pt2 .*", proof=True),  # seconds of tracing
    Left(r"fastdiff export \S*\.onnx .*", "needs onnx; tests/interop/test_export.py where it is installed"),
    Run(r"fastdiff export .*"),
    Run(r"fastdiff train .*--fid-every.*", {**_TRAIN, "--fid-every": "2", "--fid-samples": "4"}, proof=True),
    Run(r"fastdiff train --data emoji.*", {**_TRAIN, "--decay": "1"}, proof=True),  # 64 and 128 pixels
    Run(r"fastdiff train .*--decay.*", {**_TRAIN, "--decay": "1"}),
    Run(r"(torchrun .* )?fastdiff train .*", _TRAIN),
    Run(
        r"fastdiff evaluate .*--inception-weights.*", _CPU, proof=True
    ),  # 2048 features: seconds for each FID
    Run(r"fastdiff evaluate .*--bits-per-dim.*", {**_CPU, "--n": "1", "--batch-size": "1"}, proof=True),
    Run(r"fastdiff evaluate \S+ --copies .*", {"--no-progress": ""}),
    Run(r"fastdiff evaluate (out|samples|\S*\.npz) .*", _CPU),
    Run(r"fastdiff evaluate .*", {**_CPU, "--n": "8", "--batch-size": "8", "--no-progress": ""}),
    Run(r"fastdiff decision simulate .*", {"--n": "100"}),
    Run(r"fastdiff decision fit .*--starts.*", {"--starts": "1"}, proof=True),
    Run(r"fastdiff decision (fit|plot) .*", proof=True),
    Left(r"fastdiff decision posterior .*", "tests/cli/test_decision.py runs it, without the sampler"),
    Run(r"fastdiff dpm2015 swiss-roll", {**_DPM2015, "--units": "8"}, proof=True),
    Run(r"fastdiff dpm2015 heartbeat", _DPM2015, proof=True),
    Run(r"fastdiff dpm2015 (bark|dead-leaves).*", {**_IMAGES, "--size": "16", "--images": "40"}, proof=True),
    Run(r"fastdiff dpm2015 .*", {**_IMAGES, "--crop": "16"}, proof=True),
    Run(r"fastdiff bench .*--measure.*", {"--width": "32", "--rounds": "1", "--no-compile": ""}, proof=True),
    Run(r"fastdiff (bench v100-days|data check .*|fetch .*|presets|info)"),
)

HERE = {"/usr/share/": "", "step-00010000": "step-00000002"}  # places in commands, and where they are here
SHORT = {"-c": "--checkpoint", "-n": "--n", "-s": "--steps", "-b": "--batch-size", "-o": "--out"}

COMMANDS = [(page, command) for page in pages.PAGES for command in pages.commands(page)]


def row_of(command: str) -> Run | Left | None:
    return next((row for row in TABLE if re.fullmatch(row.pattern, command)), None)


def reduced(words: list[str], options: dict[str, str]) -> list[str]:
    """A command with some options replaced or added, and without the dots that stand for more."""
    words = [word for word in words if word != "..."]
    if ">" in words:
        words = words[: words.index(">")]
    for option, value in options.items():
        for given, start, end in list(pages.option_values(words)):
            if SHORT.get(given, given) == option:
                del words[start - 1 : end]
                break
        words += [option, value] if value else [option]
    return words


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_command_has_a_row(page: Path) -> None:
    unknown = [command for command in pages.commands(page) if row_of(command) is None]
    assert not unknown, f"no row of TABLE in {Path(__file__).name} says how to test: {unknown}"


def test_every_row_is_of_a_command() -> None:
    used = {row_of(command) for _, command in COMMANDS}
    assert [row.pattern for row in TABLE if row not in used] == []


@pytest.mark.parametrize("page", [p for p in pages.PAGES if pages.mentions(p)], ids=pages.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    """Their names and options. Words in capitals stand for something else."""
    for mention in pages.mentions(page):
        words = pages.fastdiff_words(mention.replace("\\|", "|"))
        if words is None or words[0] == "COMMAND":
            continue
        words = words[: words.index("|")] if "|" in words else words
        command, _ = find(words)
        if words[0].startswith("-"):
            assert words[0] in ("--help", "--version"), mention
            continue
        assert command is not FASTDIFF, mention
        options = [
            given
            for given, _, _ in pages.option_values(words)
            if given.startswith("--") and given != "--help"
        ]
        if not isinstance(command, Group):
            known = {f.replace("_", "-") for f in command_type(command).__dataclass_fields__}
            assert all(o[2:].removeprefix("no-") in known for o in options), mention


def _run(words: list[str]) -> None:
    """Run ``fastdiff`` in this process; what it prints is shown if it fails."""
    said = io.StringIO()
    out = next(
        (
            words[start]
            for option, start, _ in pages.option_values(words)
            if SHORT.get(option, option) == "--out"
        ),
        None,
    )
    if words[0] == "train" and out:
        shutil.rmtree(out, ignore_errors=True)  # of another command on the page, which would be gone on with
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    assert not code, f"fastdiff {' '.join(words)}\n{said.getvalue()[-2000:]}"
    assert out is None or Path(out).exists(), f"fastdiff {' '.join(words)} has written no {out}"
    assert said.getvalue()


def _run_page(page: Path, rows: Callable[[Run], bool]) -> None:
    """In the order of the page, so that a command finds what those before it have written."""
    for command in pages.commands(page):
        row = row_of(command)
        if isinstance(row, Run) and rows(row):
            for printed, here in HERE.items():
                command = command.replace(printed, here)
            words = pages.fastdiff_words(command)
            assert words is not None
            _run(reduced(words, row.options))


def _with_rows(rows: Callable[[Run], bool]) -> list[Path]:
    """The pages that have such commands."""
    found = {page for page, command in COMMANDS if isinstance(row := row_of(command), Run) and rows(row)}
    return sorted(found)


@pytest.mark.parametrize("page", _with_rows(lambda row: not row.proof), ids=pages.name)
def test_commands_run(page: Path, workplace: Path) -> None:
    _run_page(page, lambda row: not row.proof)


@pytest.mark.proof
@pytest.mark.parametrize("page", _with_rows(lambda row: row.proof), ids=pages.name)
def test_all_commands_run(page: Path, workplace: Path) -> None:
    _run_page(page, lambda row: True)
