"""The documentation site builds with warnings as errors, and its reference has what the package exports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, chromium

import fastdiff

ROOT = Path(__file__).parents[2]
NO_ENTRY = {"__version__", "decision", "dpm2015"}  # a number, and packages that have pages of their own

pytestmark = [pytest.mark.proof, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("material", "mkdocstrings"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_site(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    written = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in _pages()}
    assert written - {"README.html"} <= pages
    assert {"index.html", "contents.html", "CONTRIBUTING.html", "api/fastdiff.html"} <= pages
    reference = (site / "api" / "fastdiff.html").read_text()
    headings = set(re.findall(r"<h2[^>]*>\s*fastdiff\.(\w+)", reference))
    assert headings == set(fastdiff.__all__) - NO_ENTRY
    _check_links(site)
    _check_formulas(site)


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_fit_their_window(site: Path, window: dict[str, int]) -> None:
    """Each page in a browser: nothing stands out at its side, every picture is there, the network is left alone."""
    wrong, asked = [], []
    with chromium() as browser:
        page = browser.new_page(viewport=window)
        page.on("request", lambda request: asked.append(request.url))
        for file in sorted(site.rglob("*.html")):
            if file.name == "404.html":  # its links are the server's
                continue
            page.goto(file.as_uri(), timeout=120_000)
            width = page.evaluate("document.documentElement.scrollWidth")
            missing = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length")
            if width > window["width"] or missing:
                wrong.append(f"{file.relative_to(site)}: {width} pixels wide, {missing} pictures missing")
    assert not wrong
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


def _pages() -> list[Path]:
    return list((ROOT / "docs").rglob("*.md"))


def _check_links(site: Path) -> None:
    """Links of pages to each other, to pictures and to files name what is there."""
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are the server's
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def _check_formulas(site: Path) -> None:
    """As MathML, which needs no script of another server; nothing is left of their markup."""
    decision = (site / "api" / "decision.html").read_text()
    density = re.search(
        r"<math[^>]*>(.*?)</math>", decision[decision.index('id="fastdiff.decision.density.log_pdf"') :]
    )
    assert density and "<msqrt>" in density[1] and "&#x0221E;" in density[1]  # a root, an infinite sum
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert ":math:" not in text and ".. math::" not in text, page
        assert not re.search(
            r'<(?:script|img)[^>]*src="https?:|<link[^>]*stylesheet[^>]*href="https?:', text
        ), page
