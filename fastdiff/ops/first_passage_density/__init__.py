"""The density of the time at which a walk with drift leaves an interval, with its derivatives in the same pass.

Densities are of use in float64 alone, so that the op has no cases.py: tests/decision compares it with mpmath.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops import _derivatives
from fastdiff.ops._op import FusedOp
from fastdiff.ops.first_passage_density import reference
from fastdiff.ops.first_passage_density.reference import Arguments


def first_passage_density(
    t: Tensor, v: Tensor, a: Tensor, w: Tensor, sv: Tensor, upper: Tensor | None = None
) -> Tensor:
    r"""Logarithm of the density, per second, of leaving (0, a) at time t at one of the boundaries.

    At the lower boundary, with tau = t / a^2,

    .. math::
        f(t) = \frac{1}{a^2 \sqrt{1 + s_v^2 t}}
               \exp\frac{s_v^2 a^2 w^2 - 2 v a w - v^2 t}{2 (1 + s_v^2 t)}\; g(\tau), \qquad
        g(\tau) = (2 \pi \tau^3)^{-1/2} \sum_{k=-\infty}^{\infty} (w + 2 k)\, e^{-(w + 2 k)^2 / 2 \tau}
                = \pi \sum_{k=1}^{\infty} k\, e^{-k^2 \pi^2 \tau / 2} \sin k \pi w

    and at the upper one the same with -v and 1 - w. The noise is 1.

    Args:
        t: seconds since the walk began.
        v, sv: mean and standard deviation of the drift, lengths per second.
        a: separation of the boundaries.
        w: start as a fraction of a.
        upper: bool, true for the upper boundary; None: the lower one.

    All arguments broadcast against one another.

    Returns:
        log f, of the broadcast shape, -inf where t <= 0; differentiable in t, v, a, w and sv.

    Raises:
        FastdiffError: shapes that do not broadcast; dtypes that differ.

    Source: Navarro & Fuss 2009, eqs. 5 and 6; Tuerlinckx 2004 for sv.
    """
    given = (t, v, a, w, sv) if upper is None else (t, v, a, w, sv, upper)
    slopes = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    shape = t.shape
    if len(shape) != 1 or any(x.shape != shape and (x.dim() or x is upper) for x in given):
        shape = _broadcast([x.shape for x in given])
        whole = [x.dim() or x is t or x is upper for x in given]
        t, v, a, w, sv, *rest = (
            x.expand(shape).reshape(-1) if row else x for x, row in zip(given, whole, strict=True)
        )
        upper = rest[0] if rest else None
    found = first_passage_density_op(t, v, a, w, sv, upper, slopes)[0]
    return found if len(shape) == 1 else found.reshape(shape)


def _broadcast(shapes: list[torch.Size]) -> tuple[int, ...]:
    if torch.compiler.is_compiling():
        return torch.broadcast_shapes(*shapes)
    try:
        return np.broadcast_shapes(*shapes)  # torch's imports SymPy first, for a second
    except ValueError:
        given = ", ".join(str(list(shape)) for shape in shapes)
        raise FastdiffError(
            f"first_passage_density: the arguments must broadcast against one another, got {given}"
        ) from None


def _check(given: Arguments) -> None:
    t = given.t
    for name, x in zip(Arguments._fields[:6], given[:6], strict=True):
        if x is None:
            continue
        if x.shape != t.shape and (x.dim() or name in ("t", "upper")) or not t.dim() == 1:
            raise FastdiffError(
                f"first_passage_density: {name} must have shape {list(t.shape)}, got {list(x.shape)}"
            )
        if x.dtype != (torch.bool if name == "upper" else t.dtype) or not t.is_floating_point():
            raise FastdiffError(f"first_passage_density: {name} is {x.dtype}, t is {t.dtype}; give one dtype")


def _fake(given: Arguments) -> tuple[Tensor, Tensor]:
    n = given.t.shape[0]
    return given.t.new_empty(n), given.t.new_empty(reference.PARAMETERS if given.slopes else 0, n)


first_passage_density_op = FusedOp(
    "first_passage_density",
    Arguments,
    "(Tensor log_density, Tensor slopes)",
    reference=reference.first_passage_density,
    fake=_fake,
    check=_check,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.arguments = _derivatives.Split(inputs)
    ctx.save_for_backward(*ctx.arguments.tensors(inputs), output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, of_slopes: Tensor | None) -> tuple[Tensor | None, ...]:
    """Each parameter's slope times the gradient; derivatives of derivatives are the reference's."""
    *inputs, slopes = ctx.saved_tensors
    if grad is None or of_slopes is not None or torch.is_grad_enabled() or not len(slopes):
        run = first_passage_density_op.run_reference
        return _derivatives.reference_vjp(run, ctx.arguments, tuple(inputs), (grad, of_slopes))
    sums = torch.mv(slopes, grad).unbind()
    parameters = zip(Arguments._fields, inputs, slopes, sums, ctx.needs_input_grad, strict=False)
    return first_passage_density_op.gradients(
        **{name: slope * grad if x.dim() else total for name, x, slope, total, needed in parameters if needed}
    )


first_passage_density_op.register_autograd(_backward, _setup_context)
