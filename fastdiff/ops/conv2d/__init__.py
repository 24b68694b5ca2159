"""3x3 and 1x1 convolution with the norm and activation before it and the sums after it, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend, is_eager
from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.conv2d import eager, reference
from fastdiff.ops.conv2d.gradient import conv2d_backward

# Algorithms, indexed by the operator's argument; Winograd's are named by a tile's outputs, height and width.
ALGORITHMS = {"auto": 0, "f2x2": 1, "f2x4": 2, "f4x4": 3}


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
    for float64 input); on the CPU 3x3 runs by Winograd's minimal filtering in channels_last.

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
        algorithm: "auto", or a Winograd tile by name: "f2x2", "f2x4", "f4x4". Only speed and rounding depend on it.

    Returns:
        y [N, Cout, H, W] with x's dtype and layout; with ``moments``, the pair (y, moments).

    Raises:
        FastdiffError: shapes, dtypes or devices that do not fit together.

    Source: Winograd 1980; for convolutional networks, Lavin & Gray 2016, eq. 8.
    """
    number = ALGORITHMS.get(algorithm)
    if number is None:
        raise FastdiffError(f"conv2d: unknown algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    arguments = (
        *(x, more, weight, bias, affine, silu, upsample, image_bias, residual, moments, packed, number),
    )
    if is_eager():
        _check(*arguments)
        return eager.conv2d(
            x,
            weight,
            bias,
            more=more,
            affine=affine,
            silu=silu,
            upsample=upsample,
            image_bias=image_bias,
            residual=residual,
            moments=moments,
        )
    y, statistics = forward_op(*arguments)
    return (y, statistics) if moments else y


_PACKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pack_conv2d(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
    """The weight [Cout, Cin, k, k] in the order in which this machine's kernel reads it, or None if it has no kernel.

    As large as the weight, Cout rounded up to whole vectors; ``dtype`` casts it first. Pass it as
    ``conv2d(..., packed=)`` with the same weight, and make it anew when the weight changes.
    """
    weight = weight.detach() if dtype is None else weight.detach().to(dtype)
    if weight.dtype not in _PACKED_DTYPES or weight.device.type != "cpu" or forward_op.why_not(Backend.CPU):
        return None
    return torch.ops.fastdiff._conv2d_pack(weight)


def unpack_conv2d(packed: Tensor, shape: torch.Size) -> Tensor:
    """What ``pack_conv2d`` was given, to the bit: [Cout, Cin, k, k]."""
    out_channels, channels, k, _ = shape
    panels = packed.view(-1, channels, k, k, torch.ops.fastdiff._conv2d_panel())
    return panels.permute(0, 4, 1, 2, 3).reshape(-1, channels, k, k)[:out_channels].contiguous()


def _check(
    x: Tensor,
    more: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    affine: Tensor | None,
    silu: bool,
    upsample: bool,
    image_bias: Tensor | None,
    residual: Tensor | None,
    *_: Any,
) -> None:
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
    factor = 2 if upsample else 1
    if weight.shape[1] != channels:
        raise FastdiffError(f"conv2d: weight is for {weight.shape[1]} channels, the input has {channels}")
    for name, p, shape in (
        ("bias", bias, (out_channels,)),
        ("image_bias", image_bias, (n, out_channels)),
        ("affine", affine, (n, 3, channels)),
        ("residual", residual, (n, out_channels, h * factor, w * factor)),
    ):
        if p is not None and p.shape != shape:
            raise FastdiffError(f"conv2d: {name} must have shape {list(shape)}, got {list(p.shape)}")
    for name, p in (("weight", weight), ("bias", bias), ("more", more), ("residual", residual)):
        if p is not None and (p.device != x.device or p.dtype not in (x.dtype, torch.float32)):
            raise FastdiffError(
                f"conv2d: {name} is {p.dtype} on {p.device}, x is {x.dtype} on {x.device}; give {name} in x's dtype"
                " or float32, on the same device"
            )
    for name, p in (("affine", affine), ("image_bias", image_bias)):
        if p is not None and (p.device != x.device or not p.is_floating_point()):
            raise FastdiffError(
                f"conv2d: {name} must be floating point on {x.device} like x, got {p.dtype} on {p.device}"
            )


def _fake(x, more, weight, bias, affine, silu, upsample, image_bias, residual, moments, packed, algorithm):
    n, _, h, w = x.shape
    factor = 2 if upsample else 1
    shape = n, len(weight), h * factor, w * factor
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=reference.layout_of(x))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return y, x.new_empty((n, len(weight), 2) if moments else (0,), dtype=dtype)


forward_op = FusedOp(
    "conv2d",
    "(Tensor x, Tensor? more, Tensor weight, Tensor? bias, Tensor? affine, bool silu, bool upsample,"
    " Tensor? image_bias, Tensor? residual, bool moments, Tensor? packed, int algorithm)"
    " -> (Tensor y, Tensor moments)",
    reference=reference.conv2d,
    fake=_fake,
    check=_check,
    package=__name__,
    backends=(Backend.CPU,),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, more, weight, bias, affine, ctx.silu, ctx.upsample, image_bias, residual, ctx.moments, *_ = inputs
    ctx.dtypes = [None if p is None else p.dtype for p in (bias, image_bias, residual)]
    kept = output if ctx.moments else (None, None)
    ctx.save_for_backward(x, more, weight, affine, *kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_moments: Tensor | None) -> tuple[Tensor | None, ...]:
    x, more, weight, affine, y, moments = ctx.saved_tensors
    if grad_moments is not None and ctx.moments:
        through = reference.channel_moments_backward(grad_moments, y, moments)
        grad = through if grad is None else grad + through
    if grad is None:
        return (None,) * 12
    # Sums over all pixels follow, in which the rounding errors of 4x4 tiles would add up: not in float32.
    algorithm = ALGORITHMS["f2x2" if x.dtype == torch.float32 and affine is not None else "auto"]
    wanted = ctx.needs_input_grad
    bias, image_bias, residual = (None if t is None else grad for t in ctx.dtypes)
    dx, dmore, dweight, dbias, daffine = conv2d_backward(
        *(grad, x, more, weight, affine),
        silu=ctx.silu,
        upsample=ctx.upsample,
        bias=bias is not None and wanted[3],
        needs_input=wanted[0] or wanted[1] or wanted[4],
        needs_weight=wanted[2],
        input_gradient=lambda g, w: forward_op(
            g, None, w, None, None, False, False, None, None, False, None, algorithm
        )[0],
    )
    if dbias is not None:
        dbias = dbias.to(ctx.dtypes[0])
    if image_bias is not None:
        image_bias = grad.sum(dim=(2, 3), dtype=reference.compute_dtype(grad)).to(ctx.dtypes[1])
    return dx, dmore, dweight, dbias, daffine, None, None, image_bias, residual, None, None, None


forward_op.register_autograd(_backward, _setup_context)
