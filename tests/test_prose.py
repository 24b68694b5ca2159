"""Mechanical rules for prose: help texts, docstrings and Markdown pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDEST = 130  # columns of Markdown text; tables and code may be wider
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def files(suffix: str) -> list[Path]:
    folders = ("fastdiff", "benchmarks", "docs", "examples", "tests")
    return sorted([*ROOT.glob(f"*{suffix}"), *(p for f in folders for p in (ROOT / f).rglob(f"*{suffix}"))])


def strings_as_statements(source: str) -> list[tuple[int, str]]:
    """Docstrings, and the strings below a dataclass's fields, which are the texts of --help."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found.append((node.lineno, node.value.value.strip()))
    return found


def test_no_docstring_is_a_fragment():
    bad = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in files(".py")
        for line, text in strings_as_statements(path.read_text(encoding="utf-8"))
        if text.startswith("Of ")
    ]
    assert not bad, "say what it is, not only of what:\n" + "\n".join(bad)


def test_help_is_plain_text():
    """A terminal shows double backticks as they are. Module docstrings are not part of any help."""
    paths = [*(ROOT / "fastdiff/cli").glob("*.py"), ROOT / "fastdiff/training/config.py"]
    bad = [
        f"{path.name}: {text}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        for text in [ast.get_docstring(node) or "", *map(_text, node.body)]
        if "``" in text
    ]
    assert not bad, "\n".join(bad)


def _text(node: ast.stmt) -> str:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return str(node.value.value) if is_text else ""


def prose_lines(path: Path) -> list[tuple[int, str]]:
    """A page's lines without code blocks, tables and lines that are one link or picture."""
    lines, in_code = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith(("|", "![", "<img", "    ")):
            lines.append((number, line))
    return lines


@pytest.mark.parametrize("path", files(".md"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page(path):
    wide = [f"{path.name}:{n}: {len(line)} columns" for n, line in prose_lines(path) if len(line) > WIDEST]
    assert not wide, "\n".join(wide)
    targets = [a or b for a, b in LINK.findall(path.read_text(encoding="utf-8"))]
    missing = []
    for target in targets:
        file, _, heading = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        page = path.parent / file if file else path
        if not page.exists() or (heading and heading not in headings(page)):
            missing.append(target)
    assert not missing, f"{path.name} links to what is not there: {missing}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = [line.lstrip("#").strip().lower() for _, line in prose_lines(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
