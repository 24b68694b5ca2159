"""docs/architecture.md's table of rooms holds: who imports whom, and only rooms that stand further up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(fastdiff.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"
# small helpers, and the compiled module, that everyone may import
FREE = {"errors", "choices", "files", "images", "plots", "scalars", "_C"}
# the package itself: it imports lazily what its users ask for
OUTSIDE = {"__init__", "__main__"}


def _arrows() -> dict[str, set[str]]:
    """Room -> the rooms that it imports, from the page's table, in the page's order."""
    arrows: dict[str, set[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `fastdiff/"):
            _, names, _, imports, _ = line.split("|")
            for room in re.findall(r"`(?:fastdiff/)?(\w+)(?:/|\.py)`", names):
                arrows[room] = {name.strip() for name in imports.split(",")} - {""}
    return arrows


ARROWS = _arrows()


def _imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            parts = node.module.split(".")
            if parts[0] == "fastdiff":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("fastdiff.")}
    return rooms


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def test_the_page_lists_every_room() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {
        path.stem for path in ROOT.glob("*.py")
    }
    assert set(ARROWS) - {"assets"} == rooms - OUTSIDE


@pytest.mark.parametrize("room", [room for room in ARROWS if room != "assets"])
def test_imports_are_those_of_the_page(room: str) -> None:
    imported = {path: _imported_rooms(path) - FREE - OUTSIDE - {room} for path in _files(room)}
    if "all" in ARROWS[room]:
        return
    unlisted = {str(path.relative_to(ROOT)): names - ARROWS[room] for path, names in imported.items()}
    assert not {path: names for path, names in unlisted.items() if names}
    assert not ARROWS[room] - set().union(*imported.values()), "arrows that no file needs"


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_point_upward(room: str) -> None:
    """Without circles, therefore: a room imports rooms that the page lists before it."""
    before = list(ARROWS)[: list(ARROWS).index(room)]
    assert ARROWS[room] <= {*before, "all"}


@pytest.mark.parametrize(
    "pattern", ["fastdiff/**/*.py", "csrc/**/*", "benchmarks/**/*.py", "tests/**/*.py", "examples/*.py"]
)
def test_files_stay_readable(pattern: str) -> None:
    """At most 400 lines a file, as CONTRIBUTING promises."""
    long = {
        str(path.relative_to(ROOT.parent)): count
        for path in ROOT.parent.glob(pattern)
        if path.is_file()
        and path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}
        and (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_setup_stays_short() -> None:
    assert len((ROOT.parent / "setup.py").read_text().splitlines()) < 150


def test_names_of_test_files_differ() -> None:
    """pytest imports each by its name alone, and takes no second one of a name."""
    names = [path.name for path in (ROOT.parent / "tests").rglob("test_*.py")]
    assert names and len(names) == len(set(names))
