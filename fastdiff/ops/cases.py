"""Every op's cases, from each folder that has a ``cases.py``; and which folders have which module."""

import importlib
from pathlib import Path

from fastdiff.ops._case import Case


def folders(module: str) -> list[str]:
    """The ops' folders that hold ``<module>.py``: "cases", or a backend like "triton"."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob(f"*/{module}.py"))


CASES: tuple[Case, ...] = tuple(
    case
    for folder in folders("cases")
    for case in importlib.import_module(f"fastdiff.ops.{folder}.cases").CASES
)
