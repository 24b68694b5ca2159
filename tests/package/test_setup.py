"""setup.py's decisions, and what the package says of itself; nothing is built here (test_wheel.py does)."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import fastdiff
from fastdiff.ops import _library

ROOT = Path(__file__).parents[2]
PAGES = "https://pages.example/owner/fastdiff/blob/v1"


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("system", "wanted", "compiler", "said"),
    [
        ("Linux", "", "/usr/bin/c++", None),
        ("Darwin", "", "/usr/bin/c++", None),
        ("Linux", "1", "/usr/bin/c++", None),
        ("Windows", "", "cl.exe", "they are made for Linux and macOS, and this is Windows"),
        ("Linux", "0", "/usr/bin/c++", "for systems that have no package of their own"),
        ("Darwin", "", None, "no C++ compiler here"),
    ],
)
def test_where_there_are_compiled_parts(setup, system: str, wanted: str, compiler: str | None, said) -> None:
    reason = setup["why_not_compiled"](system, wanted, compiler)
    assert reason is None if said is None else said in reason


def test_what_is_missing_is_said_and_written_down(setup, tmp_path: Path, capsys) -> None:
    setup["write_note"](tmp_path, "cpu_avx2.so: a.cpp:3: error: no")
    assert "NOT COMPILED: cpu_avx2.so: a.cpp:3: error: no" in capsys.readouterr().err
    (tmp_path / "lib").symlink_to(tmp_path / "fastdiff/lib")
    libraries = _library.Libraries(tmp_path / "lib")
    assert libraries.door == "the compiled operators are not built (cpu_avx2.so: a.cpp:3: error: no)"
    setup["write_note"](tmp_path, None)
    assert libraries.note() == ""


def test_what_must_compile_is_an_error_if_it_does_not(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTDIFF_COMPILE", "1")
    setup = runpy.run_path(str(ROOT / "setup.py"))
    with pytest.raises(SystemExit, match="NOT COMPILED: ops.so"):
        setup["write_note"](tmp_path, "ops.so")


def test_links_of_the_readme_on_a_page_of_the_package(setup) -> None:
    plain, absolute = setup["readme"](""), setup["readme"](PAGES)
    assert plain == (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", absolute)
    assert len(targets) > 20 and all(target.startswith(("https:", "#")) for target in targets)
    assert "](https://pages.example/owner/fastdiff/raw/v1/docs/img/samples.png)" in absolute
    assert "](https://pages.example/owner/fastdiff/blob/v1/docs/cpu.md#ops)" in absolute


def test_one_version() -> None:
    """In fastdiff/__init__.py, of which the newest heading of the change log speaks."""
    headings = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert headings[0] == fastdiff.__version__
    assert f"\nversion: {fastdiff.__version__}\n" in citation
    assert (
        "version =" not in (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[0]
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_declared_versions_agree() -> None:
    """The pinned versions lie within the declared bounds, and torch's is the one that the operators need."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in project["dependencies"])  # type: ignore[union-attr]
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert declared.keys() <= pinned.keys()
    for name, floor in declared.items():
        assert _numbers(floor) <= _numbers(pinned[name]), name
    torch = ".".join(map(str, _library.OLDEST_TORCH))
    assert declared["torch"] == torch


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_a_wheel_for_each_python_that_is_promised() -> None:
    import tomllib

    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    promised = re.findall(r"Python :: (3)\.(\d+)", "\n".join(about["project"]["classifiers"]))
    assert about["tool"]["cibuildwheel"]["build"] == [f"cp{major}{minor}-*" for major, minor in promised]
    assert about["project"]["requires-python"] == ">=" + ".".join(promised[0])


def test_workflows_can_be_read() -> None:
    """As YAML, and they run what there is: targets of the Makefile, and files."""
    yaml = pytest.importorskip("yaml")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert len(files) >= 6
    for file in files:
        text = file.read_text()
        assert isinstance(yaml.safe_load(text), dict)
        assert set(re.findall(r"\bmake (\w+)", text)) <= targets
        for used in re.findall(r"(?:bash|-r) ([\w./]+)", text):
            assert (ROOT / used).exists(), f"{file.name}: {used}"


def test_the_site_shows_every_page() -> None:
    shown = set(re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - {"README.md"} <= shown


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
