"""``--config FILE``: a file's options become arguments, which those of the command line follow and so override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPTION = "--config"


def with_file(argv: Sequence[str]) -> list[str]:
    """The arguments of ``fastdiff train``, with the options of the --config file before them.

    Raises:
        FastdiffError: a file that cannot be read, or an option in it that is unknown.
    """
    for i, text in enumerate(argv):
        if text == OPTION and i + 1 < len(argv) or text.startswith(f"{OPTION}="):
            from fastdiff.training.config_file import read_options

            file = argv[i + 1] if text == OPTION else text.removeprefix(f"{OPTION}=")
            options = read_options(Path(file))
            return [word for name, value in options.items() for word in _words(name, value)] + list(argv)
    return list(argv)


def _words(name: str, value: Any) -> list[str]:
    """An option as it is written on the command line; none where the value is a default that cannot be written."""
    flag = name.replace("_", "-")
    if value is None or value == []:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}={value}"]
