"""Results files: JSON with one row per line, so that differences between two files are readable."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff.bench import machine
from fastdiff.files import atomic_path


def file_name(program: str, device: str = "cpu") -> str:
    """``<program>-<machine>.json``."""
    return f"{program}-{machine.slug(device)}.json"


def command() -> str:
    """The command line of this program, without the path of the current folder."""
    program, here = Path(sys.argv[0]).resolve(), Path.cwd()
    name = program.relative_to(here) if program.is_relative_to(here) else Path(program.name)
    return shlex.join(["python", name.as_posix(), *sys.argv[1:]])


def write(target: Path, about: Mapping[str, Any], **tables: Any) -> None:
    """Write a results file atomically.

    Args:
        target: the file; its name's first word is the program.
        about: the machine, of :func:`fastdiff.bench.machine.describe`, and what else is the same for all rows.
            The program and its command are added where they are missing.
        tables: by name, sequences of rows, mappings of rows by their keys, or single values.
    """
    named = {"program": target.stem.partition("-")[0], "command": command()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as path:
        path.write_text(text({"about": {**named, **about}, **tables}), encoding="utf-8")


def text(content: Mapping[str, Any]) -> str:
    """JSON: each entry of the mapping begins a line, and so does each row of a table."""
    return (
        "{\n" + ",\n".join(f" {json.dumps(key)}: {_table(value)}" for key, value in content.items()) + "\n}\n"
    )


def _table(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        rows, ends = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items()], "{}"
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        rows, ends = [json.dumps(row) for row in value], "[]"
    else:
        return json.dumps(value)
    return ends[0] + "\n  " + ",\n  ".join(rows) + f"\n {ends[1]}"
