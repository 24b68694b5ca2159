"""FusedOp: registration of an op with PyTorch, and the choice of an implementation at each call.

The choice is made inside the operator: ``torch.compile``, ``torch.jit.trace`` and ``torch.export`` see one node, and
switching the backend does not recompile anything. For a CPU or CUDA tensor the compiled library decides (csrc/torch/
door.h); for calls without a compiled kernel it calls the operator's Python part, ``fastdiff::<name>.python``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.backend import Backend, candidates, forced, from_code, log_once, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import _derivatives, _library, _measured
from fastdiff.ops._schema import schema_of

_DEFINITIONS = torch.library.Library("fastdiff", "FRAGMENT")
_NATIVE = (Backend.CPU, Backend.CUDA, Backend.EMULATION)
# Found once, since a call of an op takes a few microseconds.
_is_compiling = torch.compiler.is_dynamo_compiling
_below_autograd = torch._C._AutoDispatchBelowAutograd  # pyright: ignore[reportAttributeAccessIssue]
_transforms = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
_tracing = torch._C._get_tracing_state


@dataclass(frozen=True)
class Kernel:
    """An implementation of one op in Python, on Triton; both functions take the op's arguments as one tuple."""

    run: Callable[[Any], Any]
    supports: Callable[[Any], str | None]  # None, or why these arguments cannot be run


class _Raised(threading.local):
    error: Exception | None = None


# The exception of the Python part, kept while it passes through C++, where it loses its type.
_raised = _Raised()


class FusedOp:
    """One operator ``fastdiff::<name>`` with a reference and any number of faster kernels.

    Kernels are found where they are: a function ``fastdiff_<name>`` in a compiled library, and ``KERNELS[name]`` in the
    module ``triton`` beside the one that defines ``arguments``.

    Args:
        name: of the operator.
        arguments: a ``NamedTuple`` class, the argument list (``_schema.py``). The first is a tensor or a list of at
            least one. ``reference``, ``fake``, ``check`` and Triton's kernels take one object of it.
        returns: results in PyTorch's schema language, like "(Tensor y, Tensor mean)".
        reference: plain PyTorch, any dtype and device: the specification and the fallback.
        fake: returns empty outputs of the right shape, dtype and layout, for tracing.
        check: raises FastdiffError for arguments that do not fit together. The compiled library declines the calls
            that ``check`` would reject, so it is called only before the reference and while tracing.
    """

    def __init__(
        self,
        name: str,
        arguments: type[Any],
        returns: str,
        *,
        reference: Callable[[Any], Any],
        fake: Callable[[Any], Any],
        check: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self._no_gradients = dict.fromkeys(arguments._fields)
        self.reference = reference
        self._fake = fake
        self._check = check
        self._package = arguments.__module__.rpartition(".")[0]
        self._function: type[torch.autograd.Function] | None = None
        self._apply: Callable[..., Any] | None = None
        self._define(schema_of(arguments), returns)
        self._overload = getattr(torch.ops.fastdiff, name).default
        self._call = self._overload._op  # without the Python function around it
        OPS[name] = self

    def _define(self, arguments: str, returns: str) -> None:
        results = [part for part in returns.strip("()").split(", ") if part]
        self.results = len(results)
        names = enumerate(part.split() for part in arguments.split(", "))
        self._tensors = [(i, name) for i, (kind, name) in names if kind == "Tensor"]
        tags = (torch.Tag.pt2_compliant_tag,)
        _DEFINITIONS.define(f"{self.name}({arguments}) -> {returns}", tags=tags)
        python = f"({arguments}, int backend, str reason) -> ({', '.join([*results, 'Tensor error'])})"
        _DEFINITIONS.define(f"{self.name}.python{python}")
        _DEFINITIONS.define(f"{self.name}.why_not({arguments}, int backend) -> str")
        _DEFINITIONS.impl(self.name, self._run_in_python, "CompositeExplicitAutograd")
        _DEFINITIONS.impl(f"{self.name}.python", self._python_half, "CompositeExplicitAutograd")
        _DEFINITIONS.impl(self.name, self._above_autograd, "Autograd")
        torch.library.register_fake(f"fastdiff::{self.name}", self._checked_fake, lib=_DEFINITIONS)

    def _checked_fake(self, *args: Any) -> Any:
        return self._fake(self.checked(*args))

    def run_reference(self, *args: Any) -> Any:
        return self.reference(self.arguments(*args))

    def gradients(self, **by_name: Tensor | None) -> tuple[Tensor | None, ...]:
        """The return value of a backward: the arguments' gradients in order, None for those not named."""
        found = self._no_gradients | by_name  # not a tuple made by keywords, which takes three times as long
        if len(found) != len(self._no_gradients):
            raise TypeError(
                f"{self.name} has no arguments {', '.join(by_name.keys() - self._no_gradients.keys())}"
            )
        return tuple(found.values())

    def checked(self, *args: Any) -> Any:
        """The arguments as one tuple.

        Raises where they do not fit together, lie apart, or reach beyond their memory.
        """
        for place, name in self._tensors:
            if not isinstance(args[place], Tensor):
                raise FastdiffError(f"{self.name}: {name} must be a tensor, got {type(args[place]).__name__}")
        arguments = self.arguments(*args)
        self._check(arguments)
        lists = ([a] if isinstance(a, Tensor) else a for a in args if isinstance(a, (Tensor, list)))
        tensors = [t for some in lists for t in some if isinstance(t, Tensor)]
        devices = dict.fromkeys(str(t.device) for t in tensors)
        if len(devices) > 1:
            raise FastdiffError(
                f"{self.name}: all tensors must be on one device, got {' and '.join(devices)}"
            )
        if any(map(_is_cut_short, tensors)):
            raise FastdiffError(f"{self.name}: a tensor reaches beyond its storage")
        return arguments

    # --- A call ---------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any) -> Any:
        if _is_compiling():
            return self._overload(*args)
        try:
            if forward_ad._current_level < 0 and _transforms() is None and _tracing() is None:
                if not (torch.is_grad_enabled() and _require_gradients(args)):
                    return self.below_autograd(*args)
                if self._apply is not None:
                    return self._apply(*args)
            elif self._function is not None and _tracing() is None:
                return self._function.apply(*args)
            return self._overload(*args)
        except RuntimeError as error:
            raise _with_its_type(error) from None

    def below_autograd(self, *args: Any) -> Any:
        """Call the operator without its derivatives, for callers that need none or have their own."""
        guard = _below_autograd()
        try:
            return self._call(*args)
        finally:
            # At once, because the frame of a failed call lives as long as its exception and would keep autograd off.
            del guard

    def _above_autograd(self, *args: Any) -> Any:
        """The operator's kernel for the Autograd key, reached by calls of ``torch.ops.fastdiff.<name>``."""
        if self._function is not None and (
            forward_ad._current_level >= 0 or (torch.is_grad_enabled() and _require_gradients(args))
        ):
            return self._function.apply(*args)
        return self.below_autograd(*args)

    # --- Derivatives ----------------------------------------------------------------------------------------------

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Register a backward, as ``torch.library.register_autograd`` does; forward mode is the reference's."""
        self._register(_derivatives.function_of(self, backward, setup_context))

    def differentiate_reference(self) -> None:
        """Use the reference's derivatives: for an op that is itself a derivative, or seldom differentiated."""
        self._register(_derivatives.function_of(self))

    def _register(self, function: type[torch.autograd.Function]) -> None:
        self._function = function
        # PyTorch's own `apply` binds the arguments by name first, which takes longer than a small kernel.
        self._apply = super(torch.autograd.Function, function).apply  # pyright: ignore[reportAttributeAccessIssue]
        torch.library.register_vmap(f"fastdiff::{self.name}", function.vmap, lib=_DEFINITIONS)

    # --- Which implementation -------------------------------------------------------------------------------------

    def why_not(self, backend: Backend, *args: Any) -> str | None:
        """Why ``backend`` cannot run this op (with these arguments, if given), or None if it can."""
        if backend in (Backend.REFERENCE, Backend.EAGER):
            return None
        return self._missing(backend) or (self._declines(backend, self.arguments(*args)) if args else None)

    def _missing(self, backend: Backend) -> str | None:
        """Why there is no kernel at all."""
        if reason := _library.unavailable(backend):
            return reason
        return None if self._has_kernel(backend) else f"{self.name} has no {backend.value} kernel"

    def _declines(self, backend: Backend, arguments: Any) -> str | None:
        """Why the kernel that is there cannot run these arguments."""
        if backend in _NATIVE:
            return getattr(torch.ops.fastdiff, self.name).why_not(*arguments, backend.code) or None
        return self._triton_kernel().supports(arguments)

    def _has_kernel(self, backend: Backend) -> bool:
        """True if this op has a kernel for an available backend."""
        if backend in _NATIVE:
            return torch.ops.fastdiff._has_kernel(self.name, backend.code)
        return backend is Backend.TRITON and self.has_triton

    @functools.cached_property
    def has_triton(self) -> bool:
        """True if the op has kernels on Triton, whether Triton is installed or not."""
        return importlib.util.find_spec(f"{self._package}.triton") is not None

    def _triton_kernel(self) -> Kernel:
        return importlib.import_module(f"{self._package}.triton").KERNELS[self.name]

    def _python_half(self, *args: Any) -> Any:
        """Run a call without a compiled kernel. -> the results, then the bytes of an error's text, if any."""
        *arguments, code, reason = args
        text = b""
        try:
            results = self._run(from_code(code), reason, *arguments)
        except Exception as raised:
            _raised.error, text = raised, _text_of(raised).encode()
            results = tuple(torch.empty(0) for _ in range(self.results))
        error = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
        several = () if results is None else results if isinstance(results, tuple) else (results,)
        return (*several, error) if several else error

    def _run_in_python(self, *args: Any) -> Any:
        """Run a call without the compiled library, or on a device that it does not know."""
        return self._run(forced(), "", *args)

    def _run(self, wanted: Backend | None, reason: str, *args: Any) -> Any:
        """Run the op on the forced backend, if that is in Python, or else on the fastest available one."""
        arguments = self.checked(*args)
        if wanted in (None, Backend.EAGER):  # an op without an eager form runs as usual
            return self._run_fastest(reason, arguments)
        if wanted is Backend.REFERENCE:
            return self.reference(arguments)
        if why := self._missing(wanted) or reason or self._declines(wanted, arguments):
            raise FastdiffError(f"{self.name} cannot run on the {wanted.value} backend: {why}")
        return self._triton_kernel().run(arguments)

    def _run_fastest(self, reason: str, arguments: Any) -> Any:
        """Run on the fastest backend. ``reason``: why the device's kernels declined; "" if they were not tried."""
        for backend in self._order(arguments):
            if backend is Backend.REFERENCE:
                break
            if missing := _library.unavailable(backend):
                log_once(None, backend, missing)
            elif not self._has_kernel(backend):
                continue
            elif why := reason if backend in _NATIVE and reason else self._declines(backend, arguments):
                log_once(self.name, backend, why)
            elif backend is Backend.TRITON:
                return self._triton_kernel().run(arguments)
            else:
                with use_backend(backend):
                    return self._overload(*arguments)
        return self.reference(arguments)

    def _order(self, arguments: Any) -> tuple[Backend, ...]:
        """The backends to try, fastest first."""
        first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        if first.device.type != _measured.DEVICE_TYPE:
            return candidates(first.device.type)
        return _measured.order(self.name, first, getattr(arguments, "k", first))


def _require_gradients(args: tuple[Any, ...]) -> bool:
    # A loop: any() over a generator takes twice the time.
    for a in args:  # noqa: SIM110
        if isinstance(a, Tensor) and a.requires_grad:
            return True
    return False


def _is_cut_short(t: Tensor) -> bool:
    """True if a tensor reaches beyond its storage; PyTorch itself would read past its end."""
    if type(t) not in (Tensor, torch.nn.Parameter) or t.device.type not in ("cpu", "cuda") or not t.numel():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(t):  # pyright: ignore[reportAttributeAccessIssue]
        return False
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (t.storage_offset() + last + 1) * t.element_size() > t.untyped_storage().nbytes()


def _with_its_type(error: RuntimeError) -> Exception:
    """The exception of the Python part whose text this one carries, or the exception itself."""
    raised, _raised.error = _raised.error, None
    return raised if raised is not None and _text_of(raised) in str(error) else error


def _text_of(error: Exception) -> str:
    """The text of an error, which is never empty, because an empty text is part of every other."""
    return str(error) or type(error).__name__


def _fastest(op: str, first: Tensor, keys: Tensor) -> int:
    """Code of the fastest backend by measurement, for the compiled library."""
    order = _measured.order(op, first, keys)
    return next((b for b in order if OPS[op].why_not(b) is None), Backend.REFERENCE).code


_DEFINITIONS.define("_fastest(str op, Tensor first, Tensor keys) -> int")
_DEFINITIONS.impl("_fastest", _fastest, "CompositeExplicitAutograd")

OPS: dict[str, FusedOp] = {}
