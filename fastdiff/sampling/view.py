"""A view of a model in eval mode, for sampling it while another thread trains it."""

from __future__ import annotations

import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from fastdiff.inference.trunk import FusedTrunk

# Wrappers whose work is done by objects that hold the module they were made for.
_WRAPPERS = ("torch.jit", "torch.nn.parallel", "torch.distributed", "torch._dynamo")

_lock = threading.Lock()
_switched: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def view_in_eval_mode(model: Any) -> Any:
    """The model's own modules in eval mode, around the same parameters, buffers and hooks.

    This is the model itself if it is in eval mode already, or if no view of it can be made, as when it is compiled.
    """
    is_needed = isinstance(model, nn.Module) and any(m.training for m in model.modules())
    return _view(model) if is_needed and all(map(_can_be_viewed, model.modules())) else model


@contextlib.contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Put the model itself into eval mode, and back into train mode when the last of several threads leaves."""
    if not isinstance(model, nn.Module) or not (model.training or model in _switched):
        yield
        return
    with _lock:
        _switched[model] = _switched.get(model, 0) + 1
        model.eval()
    try:
        yield
    finally:
        with _lock:
            _switched[model] -= 1
            if not _switched[model]:
                del _switched[model]
                model.train()


def _view(module: Any, known: dict[nn.Module, Any] | None = None) -> Any:
    known = {} if known is None else known
    if module in known:
        return known[module]
    view = known[module] = module.__new__(type(module))
    view.__dict__.update(vars(module))
    children = {name: child and _view(child, known) for name, child in module._modules.items()}
    view.__dict__.update(_modules=children, training=False)
    for name, value in list(vars(view).items()):
        if isinstance(value, types.MethodType) and value.__self__ is module:
            view.__dict__[name] = types.MethodType(value.__func__, view)
        elif isinstance(value, functools.partial) and module in value.args:
            args = (view if a is module else a for a in value.args)
            view.__dict__[name] = functools.partial(value.func, *args, **value.keywords)
        elif isinstance(value, FusedTrunk):
            view.__dict__[name] = type(value)(view, value.dtype)  # pyright: ignore[reportCallIssue]
    return view


def _can_be_viewed(module: nn.Module) -> bool:
    """True if the module refers to other modules only through its list of submodules."""
    if type(module).__module__.startswith(_WRAPPERS):
        return False
    return all(_knows_no_other(module, value) for name, value in vars(module).items() if name != "_modules")


def _knows_no_other(module: nn.Module, value: Any) -> bool:
    if isinstance(value, types.MethodType):
        return value.__self__ is module
    if isinstance(value, functools.partial):
        return value.args[:1] == (module,)
    if isinstance(value, FusedTrunk):
        return not any(p.is_freed() for p in value.packed())
    if isinstance(value, types.FunctionType):
        return not value.__closure__
    inside: Iterable[Any] = (
        value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    )
    return not any(isinstance(v, nn.Module) for v in (value, *inside))
