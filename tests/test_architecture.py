"""The import arrows of docs/architecture.md: a room imports only the rooms named here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(fastdiff.__file__).parent
FREE = {"errors", "files", "images", "scalars", "_C"}  # without a room: everyone may use them

# room -> the rooms it may import; top-level modules are rooms of one file
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "images": set(),
    "scalars": set(),
    "backend": set(),
    "ops": {"backend"},
    "nn": {"ops", "backend"},
    "models": {"nn", "ops"},
    "diffusion": {"ops"},
    "engine": {"models", "nn", "ops", "backend"},
    "sampling": {"diffusion", "ops", "backend", "engine"},
    "decision": {"ops", "sampling"},
    "zoo": {"models", "diffusion"},
    "checkpoint": {"zoo", "models", "diffusion"},
    "training": {"models", "diffusion", "ops", "zoo", "checkpoint", "sampling"},
    "evaluation": {"checkpoint", "models", "diffusion", "engine", "sampling", "training", "ops"},
    "interop": {"models", "nn", "ops", "diffusion", "sampling", "training"},
    "bench": {
        "training",
        "zoo",
        "checkpoint",
        "models",
        "diffusion",
        "nn",
        "sampling",
        "engine",
        "ops",
        "backend",
    },
    "dpm2015": {"diffusion", "training", "sampling", "ops"},
    "cli": {"*"},
    "__main__": {"cli"},
    "__init__": {"*"},
}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = _room(path)
    assert room in ARROWS, f"{room} is a new room: give it a place in docs/architecture.md and here"
    allowed = ARROWS[room] | FREE | {room}
    if "*" not in allowed:
        assert _imported_rooms(path) <= allowed


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
