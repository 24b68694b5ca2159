"""Docstrings as the site needs them: Sphinx roles as code, formulas as blocks (mkdocs.yml, mkdocstrings)."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([^`]+)`")
FORMULA = re.compile(r"^( *)\.\. math::(.*)\n((?:\1 +.*\n|\n)*)", re.MULTILINE)


class Plain(griffe.Extension):
    """Rewrites each docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = FORMULA.sub(_block, text + "\n").rstrip("\n")


def _block(formula: re.Match[str]) -> str:
    indent, first, rest = formula.groups()
    lines = [first.strip(), *(line.strip() for line in rest.splitlines())]
    body = "\n".join(f"{indent}{line}" for line in lines if line)
    return f"{indent}```latex\n{body}\n{indent}```\n\n"
