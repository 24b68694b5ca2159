"""Backends of the ops: chosen at each call, or forced with :func:`use_backend`, with a reason if not available."""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch

from fastdiff.errors import FastdiffError

logger = logging.getLogger("fastdiff")
_is_compiling = torch.compiler.is_dynamo_compiling


class Backend(enum.Enum):
    """An implementation of the ops. Every op has ``REFERENCE``: plain PyTorch, any device, any dtype.

    ``EAGER`` is the baseline for comparisons: the public functions then make the PyTorch calls that a user would write
    today, visible to autograd and to the compiler. ``EMULATION`` is the CUDA kernels compiled for the CPU, for tests
    without a GPU; it is never chosen automatically.
    """

    EAGER = "eager"
    REFERENCE = "reference"
    CPU = "cpu"
    TRITON = "triton"
    CUDA = "cuda"
    EMULATION = "emulation"

    # Hashing by identity, in C: Enum's own hash is a Python function, and tables are looked up at every call.
    __hash__ = object.__hash__

    @property
    def code(self) -> int:
        """The number by which the compiled library knows it (csrc/torch/kernels.h: BackendCode)."""
        return _CODES[self]


_EAGER = Backend.EAGER  # an Enum's member is looked up by a function
_CODES = {backend: code for code, backend in enumerate(Backend, start=1)}
_BY_CODE: dict[int, Backend | None] = {0: None, **{code: backend for backend, code in _CODES.items()}}

# Fastest first; the reference closes every list, so that a call always finds an implementation.
PREFERENCE = {
    "cpu": (Backend.CPU, Backend.REFERENCE),
    "cuda": (Backend.CUDA, Backend.TRITON, Backend.REFERENCE),
}

_forced: ContextVar[Backend | None] = ContextVar("fastdiff_backend", default=None)


class _Told(threading.local):
    backend: Backend | None = None


# The backend last set in the compiled library, which cannot read a context variable, in this thread; and its setter.
_told = _Told()
tell_library: Callable[[int], object] | None = None

# torch.compile cannot read a context variable either, but it can read, and guards on, a global: the backend of the
# innermost block that is open in any thread.
_open: list[Backend] = []
_compiled: Backend | None = None

_logged: set[tuple[str | None, Backend, str]] = set()


def from_code(code: int) -> Backend | None:
    """The inverse of :attr:`Backend.code`; None for 0, which forces nothing."""
    return _BY_CODE[code]


def forced() -> Backend | None:
    """The backend set by :func:`use_backend`, or None."""
    if _is_compiling():
        return _compiled
    wanted = _forced.get()
    if wanted is not _told.backend:
        _told.backend = wanted
        if tell_library is not None:
            tell_library(0 if wanted is None else wanted.code)
    return wanted


def is_eager() -> bool:
    """True inside ``use_backend("eager")``."""
    return forced() is _EAGER


@contextlib.contextmanager
def use_backend(backend: Backend | str) -> Iterator[None]:
    """Force every op inside the ``with`` block onto one backend, in this thread or asynchronous task alone.

    An op that the backend cannot run raises :class:`FastdiffError` with the reason; there is no fallback. A backward
    pass runs on the backend of its forward, in any thread, unless its own thread forces another.
    """
    try:
        wanted = Backend(backend)
    except ValueError:
        known = ", ".join(b.value for b in Backend)
        raise FastdiffError(f"unknown backend {backend!r}; known: {known}") from None
    token = _forced.set(wanted)
    _note_open(wanted)
    forced()
    try:
        yield
    finally:
        _forced.reset(token)
        _note_closed(wanted)
        forced()


def _note_open(backend: Backend) -> None:
    global _compiled
    _open.append(backend)
    _compiled = backend


def _note_closed(backend: Backend) -> None:
    global _compiled
    # From the end: threads may leave their blocks in any order.
    del _open[len(_open) - 1 - _open[::-1].index(backend)]
    _compiled = _open[-1] if _open else None


def candidates(device_type: str) -> tuple[Backend, ...]:
    """The backends to try on a device, fastest first."""
    return PREFERENCE.get(device_type, (Backend.REFERENCE,))


def log_once(op: str | None, backend: Backend, reason: str) -> None:
    """Log, once per process, that an op (None: every op) could not use a faster backend."""
    key = (op, backend, reason)
    if key not in _logged:
        _logged.add(key)
        logger.warning("%s: not on the %s backend: %s", op or "all ops", backend.value, reason)


def device_name(device: torch.device | str = "cpu") -> str:
    """The device in words, e.g. ``"cpu (AVX2, 2 threads)"`` or ``"cuda:0 (NVIDIA H100)"``."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({capability}, {threads} thread{'s' if threads > 1 else ''})"


def usable_device(name: str) -> torch.device:
    """The device, after a check that it works; "auto" is the GPU, if there is one, and else the CPU.

    Raises:
        FastdiffError: the device is unknown or not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        unknown = reason.startswith("Expected one of")  # and then all that PyTorch has ever heard of
        why = "" if unknown else f" ({reason})"
        raise FastdiffError(f"device {name!r} cannot be used; give cpu, cuda or cuda:N{why}") from None
    return device
