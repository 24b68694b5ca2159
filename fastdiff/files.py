"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastdiff.errors import FastdiffError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary name beside ``path``; renamed to it on success, removed on any failure.

        with atomic_path("out/samples.png") as temporary:
            image.save(temporary, format="PNG")

    Raises:
        FastdiffError: the folder is missing or cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise FastdiffError(f"cannot write {target}: {error.strerror or error}") from None
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's files are private; give this one the permissions that open() would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        raise FastdiffError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
