"""The types of the public API, as a user's type checker sees them (pyright's strict mode, pyrightconfig.json).

Off is what other packages' types lack: members of torch and diffusers are partly unknown.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from fastdiff.checkpoint.load import load
from fastdiff.checkpoint.options import ClassifierName, LoadOptions, UNetName
from fastdiff.choices import SAMPLER_ALIASES, SamplerAlias
from fastdiff.models import ClassifierConfig, UNetConfig
from fastdiff.sampling.api import Sampler
from fastdiff.sampling.options import RequestOptions, SamplerOptions
from fastdiff.sampling.request import RequestArguments
from fastdiff.zoo import PRESETS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def errors() -> set[tuple[str, int, str]]:
    """(file, line, message) of each."""
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(HERE)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert found["summary"]["filesAnalyzed"] >= 6
    return {
        (Path(row["file"]).name, row["range"]["start"]["line"] + 1, row["message"])
        for row in found["generalDiagnostics"]
    }


def test_a_program_and_the_examples_are_right_in_strict_mode(errors) -> None:
    assert not {error for error in errors if error[0] != "mistakes.py"}


def test_mistakes_are_caught_where_they_are(errors) -> None:
    lines = (HERE / "mistakes.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {line for file, line, _ in errors if file == "mistakes.py"} == marked


def test_typed_options_are_those_that_there_are() -> None:
    """Said twice, for type checkers; a new field belongs into both."""
    sampler = {f.name for f in dataclasses.fields(Sampler) if f.init} - {"model"}
    assert set(SamplerOptions.__annotations__) == sampler
    request = {f.name for f in dataclasses.fields(RequestArguments)}
    assert {*RequestOptions.__annotations__, "condition"} == request
    assert set(get_args(SamplerAlias)) == SAMPLER_ALIASES.keys()
    named = set(inspect.signature(load).parameters) - {"path", "options"}
    configs = {f.name for kind in (UNetConfig, ClassifierConfig) for f in dataclasses.fields(kind)}
    assert set(LoadOptions.__annotations__) == named | configs


def test_names_of_models_are_the_presets() -> None:
    classifiers = {name for name, preset in PRESETS.items() if isinstance(preset.model, ClassifierConfig)}
    assert set(get_args(ClassifierName)) == classifiers
    assert set(get_args(UNetName)) == PRESETS.keys() - classifiers
