"""Help, version, short options and completion: quick, and without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import fastdiff
from fastdiff.sampling.samplers import SAMPLERS

pytest.importorskip("tyro", reason="tyro is not installed")

from fastdiff.cli.commands import FASTDIFF, Group, command_type, find  # noqa: E402
from fastdiff.cli.options import BatchSize, Checkpoint, Count, Out, Steps  # noqa: E402
from fastdiff.cli.parse import options_of  # noqa: E402


def _commands(group: Group = FASTDIFF, *words: str) -> Iterator[tuple[str, ...]]:
    for name, found in group.commands.items():
        yield (*words, name)
        if isinstance(found, Group):
            yield from _commands(found, *words, name)


COMMANDS = list(_commands())
HEAVY = ("torch", "numpy", "PIL", "matplotlib", "scipy", "diffusers")


def _printed(*argv: str) -> tuple[str, list[str]]:
    """What a new process prints for these words, and the heavy packages that it has imported."""
    code = f"""
import sys
sys.argv = {["fastdiff", *argv]}
from fastdiff.cli import main
try:
    main()
except SystemExit:
    pass
print("heavy:", *(name for name in {HEAVY} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, heavy = done.stdout.rpartition("heavy:")
    return text, heavy.split()


def test_help_lists_all_commands_without_pytorch() -> None:
    """Half a second is allowed; PyTorch alone takes one and a half."""
    text, heavy = _printed("--help")
    assert not heavy
    for name, found in FASTDIFF.commands.items():
        assert f" {name} " in text
        if isinstance(found, Group):
            assert found.description.split()[0] in text


def test_no_command_s_help_imports_pytorch() -> None:
    """All commands in one process: a module that imports PyTorch is then reported with all the others."""
    code = f"""
import contextlib, io, sys
from fastdiff.cli import main
for words in {COMMANDS}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert f"usage: fastdiff {{' '.join(words)}} " in said.getvalue(), words
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(command, option: str) -> None:
    assert command(option) == (0, f"fastdiff {fastdiff.__version__}\n", "")


def test_completion_knows_all_commands_and_options() -> None:
    text, heavy = _printed("--tyro-print-completion", "bash")
    assert not heavy
    for word in ("sample", "decision", "--guidance-scale", "--hierarchical", "dpmpp"):
        assert word in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_short_options(command, checkpoints, tmp_path) -> None:
    out = tmp_path / "short"
    ended = command(
        "sample", "-c", checkpoints["tiny"], "-n", 3, "-s", 2, "-b", 2, "-o", out, "--no-progress"
    )
    assert ended.code == 0, ended.err
    import numpy as np

    assert np.load(out / "samples.npz")["arr_0"].shape == (3, 8, 8, 1)


def test_short_options_are_the_same_in_all_commands() -> None:
    """``-o`` is OUT wherever there is one, and so on."""
    kinds = {"checkpoint": Checkpoint, "n": Count, "steps": Steps, "batch-size": BatchSize, "out": Out}
    letters = {name: kind.__metadata__[0].aliases[0] for name, kind in kinds.items()}
    assert letters == {"checkpoint": "-c", "n": "-n", "steps": "-s", "batch-size": "-b", "out": "-o"}
    images = [
        words for words in COMMANDS if words[0] in ("sample", "inpaint", "evaluate", "train", "dpm2015")
    ]
    for words in [*images, ("decision", "plot")]:
        place, _ = find(words)
        if isinstance(place, Group):
            continue
        known = list(options_of(command_type(place)))
        for name, letter in letters.items():
            if f"--{name}" in known:
                assert known[known.index(f"--{name}") + 1] == letter, (words, letter)


def test_a_suggestion_is_an_option_of_the_same_command(command) -> None:
    """``--bits-per-dim`` is an option of evaluate."""
    ended = command("presets", "--bits-per-dim")
    assert ended.err == "fastdiff: unknown option --bits-per-dim; see fastdiff presets --help\n"
    ended = command("evaluate", "x", "--bits-per-din")
    assert "(did you mean --bits-per-dim?)" in ended.err


def test_samplers_are_named_once_for_types_and_once_for_rows() -> None:
    from typing import get_args

    from fastdiff.choices import SamplerName

    assert sorted(SAMPLERS) == sorted(get_args(SamplerName))


def test_another_tyro_reports_mistakes_itself(command, monkeypatch, capsys) -> None:
    """Its events are not public: without them a mistake still ends with exit code 2."""
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    monkeypatch.delattr("tyro._errors", raising=False)
    with pytest.raises(SystemExit) as stopped:
        command("info", "--stesp")
    assert stopped.value.code == 2
    assert "--stesp" in capsys.readouterr().err
