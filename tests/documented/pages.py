"""What the pages say to type: shell commands and Python blocks, in the order of the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
_PROGRAMS = ("fastdiff", "torchrun", "python", "make", "pip", "pytest")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    found: list[list[str]] = []
    inside: str | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line[3:] if inside is None else None
            if inside == language:
                found.append([])
        elif inside == language:
            found[-1].append(line)
    return ["\n".join(block) for block in found]


def commands(page: Path) -> list[str]:
    """Lines of sh blocks, those that end in a backslash joined, without comments."""
    lines = re.sub(r"\\\n\s*", "", "\n".join(blocks(page, "sh"))).splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def mentions(page: Path) -> list[str]:
    """Code spans of the prose that begin with one of the programs."""
    prose, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            prose.append(line)
    spans = re.findall(r"`([^`\n]+)`", "\n".join(prose))
    return [span for span in spans if span.split()[0] in _PROGRAMS and len(span.split()) > 1]


def fastdiff_words(command: str) -> list[str] | None:
    """The words after ``fastdiff`` of a command that runs it, also through torchrun; None for another program."""
    words = shlex.split(command)
    if words[0] == "torchrun" and "fastdiff" in words:
        return words[words.index("fastdiff") + 1 :]
    return words[1:] if words[0] == "fastdiff" else None


def option_values(words: list[str]) -> Iterator[tuple[str, int, int]]:
    """Each option, and where its values begin and end."""
    starts = [i for i, word in enumerate(words) if re.match(r"--?[a-z]", word)]
    for i, start in enumerate(starts):
        end = starts[i + 1] if i + 1 < len(starts) else len(words)
        yield words[start], start + 1, end
