"""Selective recomputation: results that are cheap to compute are not kept for the backward but computed again.

docs/training_memory.md weighs it against the alternatives and has measurements.

A convolution keeps its input, and in a residual block that input is a norm's result, whose own input is kept anyway.
Inside :func:`recomputing`, autograd keeps a recipe in place of such a result: the function and its arguments. Nothing
else changes. Convolutions, matrix products and attention are never run again, and since a recipe repeats the same
kernel on the same numbers, gradients are the same to the bit.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Function = TypeVar("Function", bound=Callable[..., Tensor])


class _Recipe(NamedTuple):
    """The function and arguments that made a tensor. An argument that has a recipe itself is kept as a ``_View``."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]

    def make(self) -> Tensor:
        return self.function(*(a.make() if isinstance(a, _View) else a for a in self.args))


class _View(NamedTuple):
    """What is kept in place of a tensor: the recipe of the tensor that it views, and the view's geometry."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def make(self) -> Tensor:
        return self.recipe.make().as_strided(self.size, self.stride, self.offset)


class _Made:
    """A block's results with recipes, by address. They live until the block ends, so that addresses stay unique."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, _Recipe]] = {}

    def remember(self, result: Tensor, function: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
        if result.numel() and self.recipe(result) is None and not any(_share(result, a) for a in args):
            kept = tuple(self.pack(a.detach()) if isinstance(a, Tensor) else a for a in args)
            self._made[_address(result)] = result.detach(), _Recipe(function, kept)

    def recipe(self, t: Tensor) -> _Recipe | None:
        # Parameters that are spread over processes have a class of their own and no address; none is ever a result.
        found = self._made.get(_address(t)) if type(t) is Tensor else None
        return None if found is None else found[1]

    def forget(self) -> None:
        """Release the results: autograd keeps this object alive through its method."""
        self._made.clear()

    def pack(self, t: Tensor) -> Tensor | _View:
        recipe = self.recipe(t)
        return t if recipe is None else _View(recipe, t.size(), t.stride(), int(t.storage_offset()))


def _unpack(kept: Tensor | _View) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        return kept.make()


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _share(result: Tensor, argument: Any) -> bool:
    """True if the result is the argument itself, which is then kept as it is."""
    return isinstance(argument, Tensor) and _address(argument) == _address(result)


_here = threading.local()


def _active() -> _Made | None:
    return None if torch.compiler.is_compiling() else getattr(_here, "made", None)


def recomputing(block: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """``block(*args)``, keeping for the backward recipes in place of the results of :func:`recomputable` functions.

    For a compiler the same is expressed as a policy: which operators' results it may keep.
    """
    if torch.compiler.is_compiling():
        return checkpoint(block, *args, use_reentrant=False, context_fn=_told_to_the_compiler)  # pyright: ignore
    before, made = _active(), _Made()
    _here.made = made
    try:
        with torch.autograd.graph.saved_tensors_hooks(made.pack, _unpack):
            return block(*args)
    finally:
        _here.made = before
        made.forget()


def _told_to_the_compiler() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_expensive = any(word in operator.name() for word in ("conv", "mm", "attention"))
    return CheckpointPolicy.MUST_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE


def recomputable(function: Function) -> Function:
    """Mark a function of tensors, cheap and without randomness, as one whose result need not be kept."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        result = function(*args, **kwargs)
        if (made := _active()) is not None:
            made.remember(result, functools.partial(function, **kwargs), args)
        return result

    return run  # pyright: ignore[reportReturnType]


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, for which :func:`recomputing` keeps only a mask of one byte per element."""

    def forward(self, input: Tensor) -> Tensor:
        made = _active()
        if made is None or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        mask = _draw(input, self.p)
        result = _Dropped.apply(input, mask, self.p)
        made.remember(result, _drop, (input, mask, self.p))
        return result


def _draw(x: Tensor, p: float) -> Tensor:
    """The mask of kept elements that PyTorch's dropout would draw now; bool, in the layout of x."""
    if x.is_cuda:
        return torch.native_dropout(x.detach(), p, True)[1]
    return torch.empty_like(x).bernoulli_(1 - p).bool()


def _drop(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Rounded as PyTorch rounds it: on a GPU its forward and backward are one formula."""
    if x.is_cuda:
        return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p))
    return x * mask.to(x.dtype).div_(1 - p)


class _Dropped(torch.autograd.Function):
    """Linear in x: its gradient drops the same elements of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.p = p
        return _drop(x, mask, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (mask,) = ctx.saved_tensors
        return _drop(grad, mask, ctx.p), None, None
