"""Stands in for the package ``blobfile``, which two of the published scripts import, where it is not installed: local
files only."""

from __future__ import annotations

import os
from typing import Any

basename, dirname, exists, isdir, join = (
    os.path.basename,
    os.path.dirname,
    os.path.exists,
    os.path.isdir,
    os.path.join,
)
listdir, makedirs = os.listdir, os.makedirs


def BlobFile(path: str, mode: str = "r", **_: Any) -> Any:  # noqa: N802 (its name there)
    """An open local file."""
    return open(path, mode)  # noqa: SIM115 (the caller closes it)
