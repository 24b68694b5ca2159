"""A folder with all that the pages' commands and programs read."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import inception
import pytest
import stand_ins
from file_server import FileServer

from fastdiff.checkpoint.released import RELEASED, Released

WRITTEN = {"out", "run", "runs"}  # stand-ins of folders that commands write to as well


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins, which no test changes."""
    pytest.importorskip("tyro", reason="tyro is not installed")
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        stand_ins.shrink_presets(patch)
        stand_ins.make(folder)
    return folder


@pytest.fixture
def workplace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the stand-ins as the current one; published files come from this machine."""
    folder = tmp_path / "here"
    folder.mkdir()
    for path in template.iterdir():
        if path.name in WRITTEN:
            shutil.copytree(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FASTDIFF_CACHE", str(tmp_path / "cache"))
    stand_ins.shrink_presets(monkeypatch)
    inception.install(monkeypatch)
    server = FileServer((folder / "64x64_diffusion.pt").read_bytes())
    monkeypatch.setitem(RELEASED, "adm-64", Released("adm-64", server.folder))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    server.close()
    sys.modules.pop("transforms", None)  # the page's own transforms.py; tests of other folders have theirs
