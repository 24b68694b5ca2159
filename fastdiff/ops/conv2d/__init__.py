"""3x3 and 1x1 convolution with the norm and activation before it and the sums after it, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend, is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._library import DTYPES
from fastdiff.ops._op import FusedOp
from fastdiff.ops.conv2d import eager, reference
from fastdiff.ops.conv2d.gradient import conv2d_backward
from fastdiff.ops.conv2d.reference import Arguments, WeightArguments

# Algorithms, indexed by the operator's argument; Winograd's are named by a tile's outputs, height and width.
ALGORITHMS = {"auto": 0, "f2x2": 1, "f2x4": 2, "f4x4": 3, "direct": 4}


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    more: Tensor | None = None,
    affine: Tensor | None = None,
    silu: bool = False,
    upsample: bool = False,
    image_bias: Tensor | None = None,
    residual: Tensor | None = None,
    moments: bool = False,
    packed: Tensor | None = None,
    algorithm: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Convolution of stride 1 that keeps the image's size, fused with its neighbours in a residual block.

    .. math::
        y = b_c + e_{nc} + r + W * \mathrm{pad}(\mathrm{up}(f(x))), \qquad
        f(x) = \mathrm{SiLU}((x - \mathrm{center}_{nc})\, \mathrm{scale}_{nc} + \mathrm{shift}_{nc})

    Everything that is not given is left out: without options it is ``torch.nn.functional.conv2d(x, weight, bias,
    padding=k // 2)``. Zeros are padded after f, as a network with separate layers does. Arithmetic is float32 (float64
    for float64 input); on the CPU 3x3 runs by Winograd's minimal filtering in channels_last. The direct product, taken
    for bfloat16 on a processor with AMX, rounds f(x) and the weight to bfloat16 and sums in float32.

    Args:
        x: [N, C, H, W], float32, bfloat16, float16 or float64; channels_last is what the kernel takes.
        weight: [Cout, Cin, k, k] with k = 1 or 3, float32 or x's dtype; Cin counts x's and more's channels.
        bias: [Cout] or None.
        more: [N, C', H, W] of x's dtype and layout: further channels, as if ``torch.cat([x, more], 1)`` were given.
        affine: [N, 3, Cin] float32: center, scale, shift, from ``norm_coefficients``.
        silu: apply SiLU after it.
        upsample: x is [N, C, H/2, W/2] and every pixel stands for 2x2 (nearest neighbour), after f.
        image_bias: e [N, Cout], the time embedding.
        residual: r [N, Cout, H, W], of x's dtype.
        moments: also return the result's, for the next norm: [N, Cout, 2] float32, as ``channel_moments``.
        packed: ``pack_conv2d(weight)``, made once for many calls; without it each call packs.
        algorithm: "auto", a Winograd tile by name ("f2x2", "f2x4", "f4x4"), or "direct", for bfloat16. Only speed and
            rounding depend on it.

    Returns:
        y [N, Cout, H, W] with x's dtype and layout; with ``moments``, the pair (y, moments).

    Raises:
        FastdiffError: shapes, dtypes or devices that do not fit together.

    Source: Winograd 1980; for convolutional networks, Lavin & Gray 2016, eq. 8.
    """
    number = ALGORITHMS.get(algorithm)
    if number is None:
        raise FastdiffError(f"conv2d: unknown algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    options = more, affine, silu, upsample, image_bias, residual, moments, packed, number
    if is_eager():
        given = Arguments(x, weight, bias, *options)
        _check(given)
        return eager.conv2d(given)
    y, statistics = forward_op(x, weight, bias, *options)
    return (y, statistics) if moments else y


def pack_conv2d(
    weight: Tensor, dtype: torch.dtype | None = None, *, algorithm: str = "auto"
) -> Tensor | None:
    """The weight [Cout, Cin, k, k] in the order in which this machine's kernel reads it, or None if it has no kernel.

    As large as the weight, Cout rounded up to whole vectors, for the direct product also Cin; ``dtype`` casts it first.
    Pass it as ``conv2d(..., packed=)`` with the same weight and algorithm, and make it anew when the weight changes.
    """
    weight = weight.detach() if dtype is None else weight.detach().to(dtype)
    if weight.dtype not in DTYPES or weight.device.type != "cpu" or forward_op.why_not(Backend.CPU):
        return None
    return torch.ops.fastdiff._conv2d_pack(weight, ALGORITHMS[algorithm])


def unpack_conv2d(packed: Tensor, shape: torch.Size) -> Tensor:
    """The weight that ``pack_conv2d`` has packed, to the bit: [Cout, Cin, k, k]."""
    out_channels, channels, k, _ = shape
    if packed.dim() > 1:  # for the direct product: [panel, chunk, tap, tile, pair, column, 2]
        planes = packed.permute(0, 3, 5, 1, 4, 6, 2).flatten(0, 2).flatten(1, 3)
        return planes[:out_channels, :channels].unflatten(2, (k, k)).contiguous()
    panels = packed.view(-1, channels, k, k, torch.ops.fastdiff._conv2d_panel())
    return panels.permute(0, 4, 1, 2, 3).reshape(-1, channels, k, k)[:out_channels].contiguous()


def _check(given: Arguments) -> None:
    x, more, weight = given.x, given.more, given.weight
    if x.dim() != 4 or not x.is_floating_point():
        raise FastdiffError(
            f"conv2d: x must be a floating-point tensor [N, C, H, W], got {x.dtype} {list(x.shape)}"
        )
    if weight.dim() != 4 or weight.shape[2:] not in ((1, 1), (3, 3)):
        raise FastdiffError(
            f"conv2d: weight must have shape [Cout, Cin, 3, 3] or [Cout, Cin, 1, 1], got {list(weight.shape)}"
        )
    if more is not None and (more.dim() != 4 or more.shape[:1] + more.shape[2:] != x.shape[:1] + x.shape[2:]):
        raise FastdiffError(
            f"conv2d: more must have x's shape but for the channels: x {list(x.shape)}, more {list(more.shape)}"
        )
    channels = x.shape[1] + (0 if more is None else more.shape[1])
    n, out_channels, (h, w) = len(x), len(weight), x.shape[2:]
    factor = 2 if given.upsample else 1
    if weight.shape[1] != channels:
        raise FastdiffError(f"conv2d: weight is for {weight.shape[1]} channels, the input has {channels}")
    for name, p, shape in (
        ("bias", given.bias, (out_channels,)),
        ("image_bias", given.image_bias, (n, out_channels)),
        ("affine", given.affine, (n, 3, channels)),
        ("residual", given.residual, (n, out_channels, h * factor, w * factor)),
    ):
        if p is not None and p.shape != shape:
            raise FastdiffError(f"conv2d: {name} must have shape {list(shape)}, got {list(p.shape)}")
    for name in ("weight", "bias", "more", "residual"):
        p = getattr(given, name)
        if p is not None and (p.device != x.device or p.dtype not in (x.dtype, torch.float32)):
            raise FastdiffError(
                f"conv2d: {name} is {p.dtype} on {p.device}, x is {x.dtype} on {x.device}; give {name} in x's dtype"
                " or float32, on the same device"
            )
    for name, p in (("affine", given.affine), ("image_bias", given.image_bias)):
        if p is not None and (p.device != x.device or not p.is_floating_point()):
            raise FastdiffError(
                f"conv2d: {name} must be floating point on {x.device} like x, got {p.dtype} on {p.device}"
            )


def _fake(given: Arguments) -> tuple[Tensor, Tensor]:
    x, out_channels = given.x, len(given.weight)
    n, _, h, w = x.shape
    factor = 2 if given.upsample else 1
    shape = n, out_channels, h * factor, w * factor
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=reference.layout_of(x))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return y, x.new_empty((n, out_channels, 2) if given.moments else (0,), dtype=dtype)


forward_op = FusedOp(
    "conv2d",
    Arguments,
    "(Tensor y, Tensor moments)",
    reference=reference.conv2d,
    fake=_fake,
    check=_check,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    given = Arguments(*inputs)
    ctx.silu, ctx.upsample, ctx.moments = given.silu, given.upsample, given.moments
    ctx.dtypes = [None if p is None else p.dtype for p in (given.bias, given.image_bias, given.residual)]
    kept = output if ctx.moments else (None, None)
    ctx.save_for_backward(given.x, given.weight, given.more, given.affine, *kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_moments: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, more, affine, y, moments = ctx.saved_tensors
    if grad_moments is not None and ctx.moments:
        through = reference.channel_moments_backward(grad_moments, y, moments)
        grad = through if grad is None else grad + through
    if grad is None:
        return forward_op.gradients()
    # Sums over all pixels follow, in which the rounding errors of 4x4 tiles would add up: not in float32.
    algorithm = ALGORITHMS["f2x2" if x.dtype == torch.float32 and affine is not None else "auto"]
    wanted = Arguments(*ctx.needs_input_grad)
    bias, image_bias, residual = (None if t is None else grad for t in ctx.dtypes)
    dx, dmore, dweight, dbias, daffine = conv2d_backward(
        WeightArguments(
            grad, x, weight, more, affine, ctx.silu, ctx.upsample, bias is not None and bool(wanted.bias)
        ),
        needs_input=bool(wanted.x or wanted.more or wanted.affine),
        needs_weight=bool(wanted.weight),
        input_gradient=lambda g, w: forward_op(*Arguments(g, w, algorithm=algorithm))[0],
    )
    if dbias is not None:
        dbias = dbias.to(ctx.dtypes[0])
    if image_bias is not None:
        image_bias = grad.sum(dim=(2, 3), dtype=reference.compute_dtype(grad)).to(ctx.dtypes[1])
    return forward_op.gradients(
        x=dx, weight=dweight, bias=dbias, more=dmore, affine=daffine, image_bias=image_bias, residual=residual
    )


forward_op.register_autograd(_backward, _setup_context)
