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
from fastdiff.ops import _measured

_LIBRARY = torch.library.Library("fastdiff", "DEF")


def _is_observed() -> bool:
    """Whether anyone wants to see the operator itself: a compiler, a dispatch mode, a transform, the profiler."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch.autograd._profiler_enabled()
    )


_PLAIN = {torch.Tensor, torch.nn.Parameter}


def _is_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether their tensors, also those in lists, are of no class that wants to see the operator."""
    kinds = set(map(type, arguments))
    if list in kinds:  # hundreds of tensors, for an optimizer
        kinds.update(*(map(type, a) for a in arguments if type(a) is list))
    return not any(issubclass(kind, torch.Tensor) for kind in kinds - _PLAIN)


def _needs_gradient(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments)


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
            tensor or a list of at least one; those written to are marked, e.g. ``Tensor(a!)[]``.
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
        self._kernels: dict[Backend, Kernel | str] = {}
        self._function: type[torch.autograd.Function] | None = None
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, self._dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastdiff::{name}", fake, lib=_LIBRARY)
        self._overload = getattr(torch.ops.fastdiff, name).default
        OPS[name] = self

    def __call__(self, *args: Any) -> Any:
        # PyTorch's dispatcher takes some 10 us to come back to a Python function, and 100 us to do so with gradients.
        # Where it has nothing to do, neither tracing nor profiling, the function is called at once.
        if _is_observed() or not _is_plain(args):
            return self._overload(*args)
        if not (torch.is_grad_enabled() and _needs_gradient(args)):
            return self._dispatch(*args)
        return self._overload(*args) if self._function is None else self._function.apply(*args)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        torch.library.register_autograd(
            f"fastdiff::{self.name}", backward, setup_context=setup_context, lib=_LIBRARY
        )
        dispatch = self._dispatch

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output = dispatch(*args)
                setup_context(ctx, args, output)
                return output

        Function.backward = staticmethod(backward)
        self._function = Function

    def refuse_derivative(self) -> None:
        """For an op that is itself a derivative: a second one raises, where PyTorch would go on without it."""

        def refuse(*_: Any) -> Any:
            raise FastdiffError(
                f"{self.name} has no derivative of its own; compute second derivatives under use_backend('eager')"
            )

        self.register_autograd(refuse, lambda ctx, inputs, output: None)

    def why_not(self, backend: Backend, *args: Any) -> str | None:
        """Why ``backend`` cannot run this op (with these arguments, if given), or None if it can."""
        if backend is Backend.REFERENCE:
            return None
        kernel = self._kernel(backend)
        if isinstance(kernel, str):
            return kernel
        return kernel.supports(*args) if args else None

    def _kernel(self, backend: Backend) -> Kernel | str:
        """The backend's kernel, or why it has none on this machine. Found out once: it is asked at every call."""
        if backend not in self._kernels:
            reason = f"{self.name} has no {backend.value} kernel"
            if backend in self._backends:
                reason = unavailable(backend)
            self._kernels[backend] = reason or self._imported(backend)
        return self._kernels[backend]

    def _imported(self, backend: Backend) -> Kernel:
        return importlib.import_module(f"{self._package}.{backend.value}").KERNELS[self.name]

    def _dispatch(self, *args: Any) -> Any:
        wanted = forced()
        if wanted is not None and wanted is not Backend.EAGER:  # an op without an eager form runs as usual
            return self._run_on(wanted, *args)
        first = args[0][0] if isinstance(args[0], list) else args[0]  # a tensor, or tensors of one device
        device = first.device.type
        fastest_first = (
            candidates(device) if device != _measured.DEVICE_TYPE else _measured.order(self.name, args)
        )
        for backend in fastest_first:
            if backend is Backend.REFERENCE:
                break
            reason = self.why_not(backend, *args)
            if reason is None:
                return self._kernels[backend].run(*args)  # pyright: ignore[reportAttributeAccessIssue]
            if backend in self._backends:
                log_once(None if isinstance(self._kernels[backend], str) else self.name, backend, reason)
        return self._reference(*args)

    def _run_on(self, backend: Backend, *args: Any) -> Any:
        """Without falling through to another one."""
        if backend is Backend.REFERENCE:
            return self._reference(*args)
        if reason := self.why_not(backend, *args):
            raise FastdiffError(f"{self.name} cannot run on the {backend.value} backend: {reason}")
        return self._kernels[backend].run(*args)  # pyright: ignore[reportAttributeAccessIssue]


OPS: dict[str, FusedOp] = {}
