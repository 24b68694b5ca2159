"""FusedOp: how an op enters PyTorch once, and how one of its implementations is picked at each call.

The dispatch happens inside the opaque operator. ``torch.compile`` therefore sees a single graph node, and
switching the backend does not recompile anything.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff.backend import Backend, candidates, forced, is_eager, log_once, unavailable
from fastdiff.errors import FastdiffError

_LIBRARY = torch.library.Library("fastdiff", "DEF")


@dataclass(frozen=True)
class Kernel:
    """An implementation of one op on one backend; both functions take the op's own arguments."""

    run: Callable[..., Any]
    supports: Callable[..., str | None]  # None, or why these arguments cannot be run


class FusedOp:
    """One operator ``fastdiff::<name>`` with a reference and any number of faster kernels.

    Args:
        name: operator name; also the key under which a backend module lists its kernel.
        schema: argument list and returns in PyTorch's schema language, without the name.
        reference: plain PyTorch, any dtype and device: the specification and the fallback.
        fake: returns empty outputs of the right shape, dtype and layout, for tracing.
        package: where backend modules live: ``<package>.<backend>`` holds ``KERNELS: dict[str, Kernel]``.
        backends: the backends this op has a module for.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        package: str,
        backends: tuple[Backend, ...] = (),
    ) -> None:
        self.name = name
        self._reference = reference
        self._package = package
        self._backends = backends
        self._kernels: dict[Backend, Kernel] = {}
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, self._dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastdiff::{name}", fake, lib=_LIBRARY)
        self._overload = getattr(torch.ops.fastdiff, name).default
        OPS[name] = self

    def __call__(self, *args: Any) -> Any:
        return self._overload(*args)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        torch.library.register_autograd(
            f"fastdiff::{self.name}", backward, setup_context=setup_context, lib=_LIBRARY
        )

    def why_not(self, backend: Backend, *args: Any) -> str | None:
        """Why ``backend`` cannot run this op (with these arguments, if given), or None if it can."""
        if backend is Backend.REFERENCE:
            return None
        if backend not in self._backends:
            return f"{self.name} has no {backend.value} kernel"
        reason = unavailable(backend)
        if reason is None and args:
            reason = self._kernel(backend).supports(*args)
        return reason

    def _kernel(self, backend: Backend) -> Kernel:
        if backend not in self._kernels:
            module = importlib.import_module(f"{self._package}.{backend.value}")
            self._kernels[backend] = module.KERNELS[self.name]
        return self._kernels[backend]

    def _dispatch(self, *args: Any) -> Any:
        device = next(a for a in args if isinstance(a, torch.Tensor)).device.type
        wanted = None if is_eager() else forced()  # an op without an eager form runs as usual
        for backend in (wanted,) if wanted else candidates(device):
            if backend is Backend.REFERENCE:
                break
            if backend not in self._backends and not wanted:
                continue
            reason = self.why_not(backend, *args)
            if reason is None:
                return self._kernel(backend).run(*args)
            if wanted:
                raise FastdiffError(f"{self.name} cannot run on the {backend.value} backend: {reason}")
            log_once(self.name, backend, reason)
        return self._reference(*args)


OPS: dict[str, FusedOp] = {}
