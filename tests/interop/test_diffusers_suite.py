"""diffusers' own scheduler tests with fastdiff's schedulers in the place of theirs.

They are not in its package: ``DIFFUSERS_REPOSITORY=path pytest tests/interop/test_diffusers_suite.py`` runs them from a
checkout of the installed version (torchsde must be there too). All pass for 0.38.0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = os.environ.get("DIFFUSERS_REPOSITORY")
HERE = Path(__file__).parent


@pytest.mark.skipif(not REPOSITORY, reason="DIFFUSERS_REPOSITORY names no checkout of diffusers")
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_multi", "euler"])
def test_diffusers_own_tests_pass(name: str) -> None:
    plugin = ("-p", "substituted_schedulers", "-p", "no:cacheprovider")
    search = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, f"tests/schedulers/test_scheduler_{name}.py"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
