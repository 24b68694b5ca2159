"""The lowest versions that pyproject.toml declares, all at once: installed, and the smoke tests run on them.

torch is an exception: an old one would be a download of its own size. So are the extras for a GPU and for Inception,
whose dependencies belong to one torch each. The demo's lowest Gradio is the one that all other tests run on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SMOKE = [
    "test_import.py::test_import_alone_does_not_import_torch",
    "test_import.py::test_public_name_is_there",
    "test_images.py",
    "cli/test_help.py",
    "cli/test_info.py",
    "cli/test_bad_input.py",
    "cli/test_inpaint.py",
    "data/test_data.py",
    "data/test_data_pictures.py",
    "checkpoint/test_roundtrip.py",
    "checkpoint/test_fetch.py",
    "cli/test_decision.py::test_plot",
    "decision/test_fit_options.py::test_formulas",
    "decision/test_posterior.py::test_one_subjects_inference_data",
    "training/test_log.py::test_tensorboard_reads_what_was_logged",
    "evaluation/test_frechet.py",
    "interop/test_export.py::test_onnx[upsampler-True]",
    "interop/test_export.py::test_a_diffusers_folder",
]
LISTS = ("dependencies", "train", "decision", "formulas", "posterior", "evaluate", "export")
# formulaic's and nutpie's: newer ones want a newer NumPy.
WITH_OLD_NUMPY = ["pandas==2.3.3", "pytz==2025.2", "pyarrow==18.1.0"]

pytestmark = [
    pytest.mark.proof,
    pytest.mark.xdist_group("package"),
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="the oldest NumPy has no wheels for this Python"),
]


def floors() -> list[str]:
    """``["numpy==1.26", ...]``: what is declared, without torch."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [text.split(f"\n{name} = [")[1].split("]")[0] for name in LISTS]
    declared = dict(re.findall(r'"([\w-]+)>=([\d.]+)[",]', "".join(lists)))
    return [f"{name}=={version}" for name, version in declared.items() if name != "torch"]


def test_smoke_tests_on_the_lowest_versions(tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    wanted = floors()
    assert {"numpy==1.26", "pillow==10.1", "scipy==1.11.1", "diffusers==0.30"} <= set(wanted)
    # Without what they in turn depend on: that is here already, behind these on the path.
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--only-binary",
    ]
    done = subprocess.run(
        [*map(str, install), ":all:", *wanted, *WITH_OLD_NUMPY], capture_output=True, text=True
    )
    if done.returncode and "No matching distribution" not in done.stderr and "onnection" in done.stderr:
        pytest.skip("no packages can be fetched here")
    assert done.returncode == 0, done.stderr
    site = next(home.glob("lib/python*/site-packages"))
    (site / "rest.pth").write_text(str(Path(torch.__file__).parents[1]))
    # The plugins of pytest here may want newer versions of what is now old.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [str(python), "-m", "pytest", *(f"tests/{name}" for name in SMOKE)]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-4000:]
    versions = subprocess.run(
        [str(python), "-c", _VERSIONS], capture_output=True, text=True, check=True
    ).stdout
    assert versions.split() == ["1.26.0", "10.1.0", "1.0.14", "1.11.1", "1.17.0"]


_VERSIONS = """
import numpy, onnx, PIL, scipy, tyro
print(*(module.__version__ for module in (numpy, PIL, tyro, scipy, onnx)))
"""
