"""The notebooks of docs/notebooks: what is committed is a whole run, and they run."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# In place of the cell of parameters.
SMALLER: dict[str, dict[str, Any]] = {
    "train_on_your_own_pictures": {"PICTURES": 12, "STEPS": 3, "CLASSIFIER_STEPS": 2, "COMPARED": 6},
    "diffusers_on_a_cpu": {"CALLS": 1, "STEPS": 2, "WIDTHS": (32, 32, 32, 32), "LOOP_STEPS": 2},
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _cells(path: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@each_notebook
def test_outputs_are_those_of_one_run(path: Path) -> None:
    """All cells in order, pictures among the outputs, nothing of the machine that ran them, below a megabyte."""
    cells = _cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(o["output_type"] != "error" and o.get("name") != "stderr" for o in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not re.search(r"[ \"'](/tmp|/home|/root|/usr|/work|/var)/", path.read_text())
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_parameters_are_those_that_are_made_smaller(path: Path) -> None:
    (cell,) = (c for c in _cells(path) if "parameters" in c["metadata"].get("tags", ()))
    assert re.findall(r"^(\w+) = ", "".join(cell["source"]), re.MULTILINE) == list(SMALLER[path.stem])


@pytest.mark.proof
@each_notebook
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a reduced form; its shell commands are this package's."""
    for needed in ("nbclient", "nbformat", "ipykernel", "matplotlib", "diffusers", "torchmetrics"):
        pytest.importorskip(needed)
    command = tmp_path / "fastdiff"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastdiff "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import notebook_pages  # pyright: ignore[reportMissingImports]

    notebook = notebook_pages.execute(path, SMALLER[path.stem])
    shown = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    committed = [output for cell in _cells(path) for output in cell["outputs"]]
    assert [sorted(o.get("data", ())) for o in shown if "data" in o] == [
        sorted(o["data"]) for o in committed if "data" in o
    ]
