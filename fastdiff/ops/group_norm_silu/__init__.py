"""Group normalisation, optional adaptive scale and shift, and SiLU in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.group_norm_silu import eager, reference
from fastdiff.ops.group_norm_silu.reference import Arguments, BackwardArguments


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    r"""SiLU of a group normalisation, with AdaGN's scale and shift.

    .. math::
        h = \Big(\frac{x - \mu_{ng}}{\sqrt{\sigma^2_{ng} + \epsilon}} \gamma_c + \beta_c\Big)
            (1 + \mathrm{scale}_{nc}) + \mathrm{shift}_{nc}, \qquad y = h \cdot \mathrm{sigmoid}(h)

    Statistics and arithmetic are float32 (float64 for float64 input); only the result is rounded to x's dtype.

    Args:
        x: [N, C, *], float32, bfloat16, float16 or float64; contiguous or channels_last, kept as it comes.
        num_groups: G, a divisor of C.
        weight, bias: gamma, beta [C], or None for 1 and 0; float32 or x's dtype.
        scale, shift: [N, C] (trailing dimensions of size 1 allowed), or None for 0; float32 or x's dtype.
        eps: added to the variance.
        silu: False leaves the activation out.

    Returns:
        y, with x's shape, dtype and layout.

    Raises:
        FastdiffError: shapes, dtypes or devices that do not fit together.

    Source: GroupNorm, Wu & He 2018, eq. 1-3; AdaGN, Dhariwal & Nichol 2021, section 3; SiLU, Elfwing et al. 2017.
    """
    if is_eager():
        given = Arguments(x, num_groups, weight, bias, scale, shift, eps, silu)
        _check(given)
        return eager.group_norm_silu(given)
    if scale is not None and scale.dim() > 2:
        scale = _rows(scale)
    if shift is not None and shift.dim() > 2:
        shift = _rows(shift)
    return forward_op(x, num_groups, weight, bias, scale, shift, eps, silu)[0]


def _rows(p: Tensor) -> Tensor:
    """[N, C, 1, ..., 1] -> [N, C]."""
    return p.flatten(1) if p.shape[2:].numel() == 1 else p


def _check(given: Arguments) -> None:
    x, num_groups = given.x, given.num_groups
    if x.dim() < 2 or not x.is_floating_point():
        raise FastdiffError(
            f"group_norm_silu: x must be a floating-point tensor [N, C, *], got {x.dtype} {list(x.shape)}"
        )
    n, c = x.shape[0], x.shape[1]
    if num_groups < 1 or c % num_groups:
        raise FastdiffError(f"group_norm_silu: num_groups={num_groups} does not divide the {c} channels of x")
    _check_parameter("weight", given.weight, x, (c,))
    _check_parameter("bias", given.bias, x, (c,))
    _check_parameter("scale", given.scale, x, (n, c))
    _check_parameter("shift", given.shift, x, (n, c))


def _check_parameter(name: str, p: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> None:
    if p is None:
        return
    given = p.shape
    if given != shape and (len(shape) == 1 or given[:2] != shape or any(size != 1 for size in given[2:])):
        raise FastdiffError(f"group_norm_silu: {name} must have shape {list(shape)}, got {list(given)}")
    if p.device != x.device:
        raise FastdiffError(f"group_norm_silu: {name} is on {p.device}, x is on {x.device}")
    if p.dtype != x.dtype and p.dtype != torch.float32:
        raise FastdiffError(f"group_norm_silu: {name} must be float32 or {x.dtype} like x, got {p.dtype}")


def _stats_like(x: Tensor, *shape: Any) -> Tensor:
    return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _fake_forward(given: Arguments) -> tuple[Tensor, ...]:
    x, shape = given.x, (given.x.shape[0], given.num_groups)
    return torch.empty_like(x), _stats_like(x, *shape), _stats_like(x, *shape)


def _fake_backward(given: BackwardArguments) -> tuple[Tensor, ...]:
    x, (n, c) = given.x, given.x.shape[:2]
    per_image = (_stats_like(x, n, c), _stats_like(x, n, c))
    return torch.empty_like(x), _stats_like(x, c), _stats_like(x, c), *per_image


forward_op = FusedOp(
    "group_norm_silu",
    Arguments,
    "(Tensor y, Tensor mean, Tensor rstd)",
    reference=reference.group_norm_silu,
    fake=_fake_forward,
    check=_check,
)

backward_op = FusedOp(
    "group_norm_silu_backward",
    BackwardArguments,
    "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dscale, Tensor dshift)",
    reference=reference.group_norm_silu_backward,
    fake=_fake_backward,
)
backward_op.differentiate_reference()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    given = Arguments(*inputs)
    ctx.num_groups, ctx.silu = given.num_groups, given.silu
    ctx.save_for_backward(given.x, *output[1:], *given.parameters())
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad: Tensor | None, dmean: Tensor | None, drstd: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, mean, rstd, *affine = ctx.saved_tensors
    dx, *daffine = None, None, None, None, None
    if grad is not None:
        dx, *daffine = backward_op(grad, x, mean, rstd, ctx.num_groups, *affine, ctx.silu)
    if dmean is not None or drstd is not None:  # in second derivatives: the first one reads the statistics
        through = reference.statistics_backward(dmean, drstd, x, mean, rstd)
        dx = through if dx is None else dx + through
    cast = (None if p is None or g is None else g.to(p.dtype) for p, g in zip(affine, daffine, strict=True))
    return forward_op.gradients(x=dx, **dict(zip(("weight", "bias", "scale", "shift"), cast, strict=True)))


forward_op.register_autograd(_backward, _setup_context)
