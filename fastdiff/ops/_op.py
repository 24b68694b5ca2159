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

from fastdiff.backend import Backend, candidates, forced, log_once, unavailable
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
        schema: argument list and returns in PyTorch's schema language, without the name. The first argument is a
            tensor; its device is the op's.
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
        self._chosen: dict[str, tuple[tuple[Backend, Kernel], ...]] = {}
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

    def _usable(self, device: str) -> tuple[tuple[Backend, Kernel], ...]:
        """This op's kernels for a device, fastest first, that this machine can run: found out once, then kept."""
        found = []
        for backend in candidates(device):
            if backend not in self._backends:
                continue
            if reason := unavailable(backend):
                log_once(self.name, backend, reason)
            else:
                found.append((backend, self._kernel(backend)))
        self._chosen[device] = tuple(found)
        return self._chosen[device]

    def _dispatch(self, *args: Any) -> Any:
        wanted = forced()
        if wanted is None or wanted is Backend.EAGER:  # an op without an eager form runs as usual
            device = args[0].device.type
            chosen = self._chosen.get(device)
            for backend, kernel in self._usable(device) if chosen is None else chosen:
                reason = kernel.supports(*args)
                if reason is None:
                    return kernel.run(*args)
                log_once(self.name, backend, reason)
        elif wanted is not Backend.REFERENCE:
            if reason := self.why_not(wanted, *args):
                raise FastdiffError(f"{self.name} cannot run on the {wanted.value} backend: {reason}")
            return self._kernel(wanted).run(*args)
        return self._reference(*args)


OPS: dict[str, FusedOp] = {}
