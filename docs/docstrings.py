"""Docstrings as the site needs them: Sphinx roles as code, tables as text, formulas as MathML (for mkdocs.yml).

Browsers draw MathML by themselves: the site needs no script and no font of another server.
"""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([^`]+)`")
INLINE = re.compile(r":math:`([^`]+)`")
FORMULA = re.compile(r"^( *)\.\. math::(.*)\n((?:\1 +.*\n|\n)*)", re.MULTILINE)
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(?:.*\n)*?\1\2(?=\n *\n|\n*\Z)", re.MULTILINE)
FUNCTION = re.compile(r"(<mi>(?:[a-z]{2,})</mi>)(?!<mo[^>]*>&#x00028;)")  # log x, but log(x)


class Plain(griffe.Extension):
    """Rewrites each docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value) + "\n"
            text = FORMULA.sub(_block, TABLE.sub(_table, text))
            obj.docstring.value = INLINE.sub(lambda tex: mathml(tex[1]), text).rstrip("\n")


def mathml(tex: str, display: str = "inline") -> str:
    """TeX as an element of HTML."""
    # What browsers know of MathML ("Core") aligns by CSS, and leaves no space between a function and what follows.
    found = re.sub(r'columnalign="(\w+)"', r'style="text-align: \1"', convert(tex, display=display))
    return FUNCTION.sub(r'\1<mspace width="0.17em" />', found)


def _block(formula: re.Match[str]) -> str:
    indent, first, rest = formula.groups()
    tex = " ".join(filter(None, [first.strip(), *(line.strip() for line in rest.splitlines())]))
    if r"\\" in tex:  # several lines, as Sphinx has them
        tex = rf"\begin{{align*}} {tex} \end{{align*}}"
    # In an element of its own, inside of which Markdown has no meaning.
    return f'{indent}<div style="overflow-x: auto">{mathml(tex, "block")}</div>\n\n'


def _table(table: re.Match[str]) -> str:
    indent = table[1]
    return f"{indent}```text\n{table[0]}\n{indent}```"
