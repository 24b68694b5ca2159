"""Derivatives of the ops: reverse mode by their own backward, all others from the reference.

The reference is plain PyTorch and so has every derivative. With f the reference as a function of its tensors and
J its Jacobian, torch.func.vjp gives u -> u^T J; that is linear in u, and its own vjp gives v -> J v, forward mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.backend import forced, use_backend

if TYPE_CHECKING:
    from fastdiff.ops._op import FusedOp


def function_of(
    op: FusedOp,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> type[torch.autograd.Function]:
    """The op as a differentiable function, with its own backward or that of the reference.

    Args:
        backward, setup_context: as for ``torch.library.register_autograd``.
    """

    below = op.below_autograd

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return below(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.backend = forced()
            if setup_context is None:
                ctx.arguments = Split(inputs)
                ctx.save_for_backward(*ctx.arguments.tensors(inputs))
                ctx.set_materialize_grads(False)
            else:
                setup_context(ctx, inputs, output)
            if forward_ad._current_level >= 0:
                ctx.all = Split(inputs)
                ctx.save_for_forward(*ctx.all.tensors(inputs))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            with _on_the_backend_of(ctx):
                if backward is not None:
                    return backward(ctx, *grads)
                return reference_vjp(op.run_reference, ctx.arguments, ctx.saved_tensors, grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            found = _reference_jvp(op.run_reference, ctx.all, ctx.saved_tensors, tangents)
            if op.results == 1:
                return found[0]
            return *found, *(None,) * (op.results - len(found))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
            return _one_by_one(op, info.batch_size, in_dims, args)

    Function.__name__ = Function.__qualname__ = op.name
    return Function


def _on_the_backend_of(ctx: Any) -> contextlib.AbstractContextManager[None]:
    """Run the backward on the forward's backend: on a GPU it runs in PyTorch's threads, outside the forward's block."""
    if ctx.backend is None or forced() is not None:
        return contextlib.nullcontext()
    return use_backend(ctx.backend)


class Split:
    """Split the arguments of a call into tensors of real numbers and all others."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        self.real = [i for i in self.places if args[i].is_floating_point()]
        self.others = [None if isinstance(a, Tensor) else a for a in args]

    def tensors(self, args: tuple[Any, ...]) -> list[Tensor]:
        return [args[i] for i in self.places]

    def of_reals(
        self, function: Callable[..., Any], tensors: tuple[Tensor, ...]
    ) -> tuple[Callable[..., tuple[Tensor, ...]], list[Any]]:
        """``function`` as a function from its real tensors to the real tensors among its results; and these tensors."""
        args = list(self.others)
        for i, t in zip(self.places, tensors, strict=True):
            args[i] = t

        def of(*reals: Tensor) -> tuple[Tensor, ...]:
            filled = list(args)
            for i, t in zip(self.real, reals, strict=True):
                filled[i] = t
            results = function(*filled)
            results = results if isinstance(results, tuple) else (results,)
            return tuple(r for r in results if r.is_floating_point())

        return of, [args[i] for i in self.real]


def _vjp(function: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    return torch.func.vjp(function, *primals)  # pyright: ignore[reportReturnType]  (two of them, without has_aux)


def reference_vjp(
    function: Callable[..., Any],
    arguments: Split,
    tensors: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    of, reals = arguments.of_reals(function, tensors)
    results, pull = _vjp(of, *reals)
    # Results that are not real numbers, such as flags, come last and have no gradient.
    given = [
        torch.zeros_like(r) if g is None else g for r, g in zip(results, grads[: len(results)], strict=True)
    ]
    found: list[Tensor | None] = [None] * len(arguments.others)
    for i, g in zip(arguments.real, pull(tuple(given)), strict=True):
        found[i] = g
    return tuple(found)


def _reference_jvp(
    function: Callable[..., Any],
    arguments: Split,
    tensors: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    of, reals = arguments.of_reals(function, tensors)
    results, pull = _vjp(of, *reals)
    _, push = _vjp(pull, tuple(torch.zeros_like(r) for r in results))
    given = tuple(
        torch.zeros_like(r) if tangents[i] is None else tangents[i]
        for i, r in zip(arguments.real, reals, strict=True)
    )
    (found,) = push(given)
    return found


def _one_by_one(op: FusedOp, size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> Any:
    """vmap: the op for every member of the batch, results side by side."""

    def member(i: int) -> list[Any]:
        return [
            a if dim is None else [t.select(dim, i) for t in a] if isinstance(a, list) else a.select(dim, i)
            for a, dim in zip(args, in_dims, strict=True)
        ]

    results = [op(*member(i)) for i in range(size)]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])
    return torch.stack(results), 0
