"""Makes a site of the pages as they stand in the repository: mkdocs runs these functions (mkdocs.yml).

The pages link to each other, and to files beside docs/, as a checkout has them. README.md is the site's first page,
docs/README.md its contents; a linked file becomes a part of the site, a linked folder plain text, a notebook a page.
The reference comes from the docstrings of what each package exports.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_pages import as_markdown

ROOT = Path(__file__).resolve().parents[1]
# A page of the repository -> its name on the site. All others of docs/ keep theirs.
NAMES = {"README.md": "index.md", "docs/README.md": "contents.md"}
NAMES |= {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#]+)(#[^)]*)?\)")
REFERENCE = ("", "ops", "training", "evaluation", "decision", "dpm2015")  # packages of fastdiff


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All of docs/, what is beside it and linked, and the reference."""
    for hidden in ("README.md", "site.py", "docstrings.py", "notebook_pages.py", "requirements.txt"):
        if file := files.get_file_from_path(hidden):
            files.remove(file)
    for source, name in NAMES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for package in REFERENCE:
        name = f"api/{package or 'fastdiff'}.md"
        files.append(File.generated(config, name, content=_reference(package)))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page, pictures = as_markdown(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    pages = [ROOT / name for name in NAMES] + sorted((ROOT / "docs").rglob("*.md"))
    for page in pages:
        for link in LINK.finditer(page.read_text(encoding="utf-8")):
            path = _resolved(page.relative_to(ROOT).as_posix(), link[3])
            beside = path not in NAMES and not path.startswith("docs/") and (ROOT / path).is_file()
            if beside and not files.get_file_from_path(_on_site(path)):
                content = (ROOT / path).read_text(encoding="utf-8")
                files.append(File.generated(config, _on_site(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Its links as the site needs them."""
    here = page.file.src_uri
    source = next((source for source, name in NAMES.items() if name == here), f"docs/{here}")

    def relinked(link: re.Match[str]) -> str:
        path = _resolved(source, link[3])
        if (ROOT / path).is_dir():
            return link[2]
        target = posixpath.relpath(_on_site(path), posixpath.dirname(here) or ".")
        return f"{link[1]}[{link[2]}]({target}{link[4] or ''})"

    return LINK.sub(relinked, markdown)


def _resolved(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _on_site(path: str) -> str:
    if path in NAMES:
        return NAMES[path]
    inside = re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))  # docs/notebook_pages.py
    # A Markdown file beside docs/ is shown as it is, and a file without an ending as text.
    outside = not path.startswith("docs/") and (path.endswith(".md") or "." not in posixpath.basename(path))
    return f"{inside}.txt" if outside else inside


def _reference(package: str) -> str:
    """An entry for each name that ``fastdiff/<package>/__init__.py`` exports (``from x import y as y``)."""
    tree = ast.parse((ROOT / "fastdiff" / package / "__init__.py").read_text(encoding="utf-8"))
    title = f"fastdiff.{package}" if package else "fastdiff"
    entries = {
        alias.name: f"::: {_home(node.module, alias.name)}\n    options:\n      heading: {title}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module != title  # whose names are packages
        for alias in node.names
        if alias.asname == alias.name
    }
    return "\n\n".join([f"# {title}", *(entries[name] for name in sorted(entries, key=str.lower))])


def _home(module: str, name: str) -> str:
    """Where a name is defined, also if a module has the same name: ``fastdiff.checkpoint.load.load``."""
    beside = ROOT / module.replace(".", "/") / name
    return (
        f"{module}.{name}.{name}"
        if beside.is_dir() or beside.with_suffix(".py").exists()
        else f"{module}.{name}"
    )
