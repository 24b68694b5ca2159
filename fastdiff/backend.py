"""Which implementation of an op runs: chosen per call, forced with :func:`use_backend`, explained in words."""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import logging
from collections.abc import Iterator

import torch

from fastdiff.errors import FastdiffError

logger = logging.getLogger("fastdiff")


class Backend(enum.Enum):
    """One way to run an op. Every op has ``REFERENCE``: plain PyTorch, any device, any dtype.

    ``EAGER`` is not an implementation to prefer but the baseline to beat: the public functions then make the
    PyTorch calls that a user would write today, visible to autograd and to the compiler.
    """

    EAGER = "eager"
    REFERENCE = "reference"
    CPU = "cpu"
    TRITON = "triton"
    CUDA = "cuda"

    __hash__ = (
        object.__hash__
    )  # by identity, in C: each call of an op looks up its kernels, and Enum's is in Python


# Fastest first; the reference closes every list, so that a call always finds an implementation.
PREFERENCE = {
    "cpu": (Backend.CPU, Backend.REFERENCE),
    "cuda": (Backend.CUDA, Backend.TRITON, Backend.REFERENCE),
}

# Process-wide rather than per thread: autograd runs the backward of a GPU op on threads of its own.
_forced: Backend | None = None
_logged: set[tuple[str | None, Backend, str]] = set()


def forced() -> Backend | None:
    """The backend set by :func:`use_backend`, or None."""
    return _forced


def is_eager() -> bool:
    """True inside ``use_backend("eager")``."""
    return _forced is Backend.EAGER


@contextlib.contextmanager
def use_backend(backend: Backend | str) -> Iterator[None]:
    """Force every op inside the ``with`` block, in the whole process, onto one backend.

    An op that the backend cannot run raises :class:`FastdiffError` with the reason; nothing falls through.
    """
    global _forced
    try:
        wanted = Backend(backend)
    except ValueError:
        known = ", ".join(b.value for b in Backend)
        raise FastdiffError(f"unknown backend {backend!r}; known: {known}") from None
    before, _forced = _forced, wanted
    try:
        yield
    finally:
        _forced = before


def candidates(device_type: str) -> tuple[Backend, ...]:
    """The backends to try on a device, fastest first."""
    return PREFERENCE.get(device_type, (Backend.REFERENCE,))


def unavailable(backend: Backend) -> str | None:
    """Why ``backend`` cannot run on this machine at all, or None if it can."""
    if backend is Backend.CPU:
        from fastdiff.ops import _native

        return _native.why_not()
    if backend is Backend.CUDA:
        from fastdiff.ops import _cuda

        return _cuda.why_not()
    if backend is Backend.TRITON:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed (pip install 'fastdiff[gpu]')"
        from fastdiff.ops import _triton

        if not _triton.INTERPRETED and not torch.cuda.is_available():
            return "no CUDA device is visible to torch"
    return None


def log_once(op: str | None, backend: Backend, reason: str) -> None:
    """Say once per process that an op, or with None every op, could not use a faster backend."""
    key = (op, backend, reason)
    if key not in _logged:
        _logged.add(key)
        logger.warning("%s: not on the %s backend: %s", op or "all ops", backend.value, reason)
