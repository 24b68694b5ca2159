"""Parsing of the command line. A mistake in it is reported in one line, like every other error."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from fastdiff.errors import FastdiffError

PROGRAM = "fastdiff"

# Python's messages for a text that is not a number, and what is printed instead.
_IN_WORDS = (
    (re.compile(r"no type matching .* Got errors: .*<class '(?:int|float)'>: "), ""),
    (re.compile(r"invalid literal for int\(\) with base 10: ('.*')"), r"\1 is not a whole number"),
    (re.compile(r"could not convert string to float: ('.*')"), r"\1 is not a number"),
    (re.compile(r"^Error parsing (--\S+): "), r"\1: "),
    (re.compile(r"^Error parsing \w+: "), ""),
    (re.compile(r" - +"), " "),
)


def parse(commands: Any, argv: Sequence[str]) -> Any:
    """The command that ``argv`` asks for. ``--help`` prints help and raises SystemExit(0).

    Raises:
        FastdiffError: an unknown command or option, or a value of another type, in one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog=PROGRAM, args=list(argv))
    except SystemExit as stop:
        if not stop.code:
            raise
    known = bool(argv) and not argv[0].startswith("-") and "Available subcommands" not in said.getvalue()
    manual = f"{PROGRAM} {argv[0]} --help" if known else f"{PROGRAM} --help"
    raise FastdiffError(f"{one_line(said.getvalue())}; see {manual}")


def one_line(box: str) -> str:
    """An error box as one line: its sections without the descriptions of options."""
    sections = [section for section in map(" ".join, _sections(box)) if section]
    message = "; ".join(section.strip().removesuffix(".") for section in sections)
    for pattern, words in _IN_WORDS:
        message = pattern.sub(words, message)
    return " ".join(message.split()) or "the command line could not be read"


def _sections(box: str) -> Iterator[list[str]]:
    """The sections between the box's rules. Descriptions, which are indented deeper, are left out."""
    section: list[str] = []
    for text in _rows(re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()):
        if text and not text.strip("─- "):
            yield section
            section = []
        elif text.startswith(("For full helptext", "Argument helptext")):
            return  # the box ends with these
        elif len(text) - len(text.lstrip()) <= 4:
            section.append(text.strip())
    yield section


def _rows(lines: list[str]) -> list[str]:
    """The box's rows without its frame, which is drawn in blanks where the terminal has only ASCII."""
    if any(line.startswith("│") for line in lines):
        return [line.strip("│").removeprefix(" ").rstrip() for line in lines if line.startswith("│")]
    return [line[2:].rstrip() for line in lines[2:]]  # a title and a rule stand above
