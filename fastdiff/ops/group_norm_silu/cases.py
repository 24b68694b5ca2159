"""Inputs that break group-norm kernels, and the shapes that ADM spends its time in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case, by_name
from fastdiff.ops.group_norm_silu import eager, group_norm_silu
from fastdiff.ops.group_norm_silu.reference import Arguments

# Views of x that leave gaps: shape of the whole -> view of the wanted shape.
_VIEWS: dict[str, tuple[Callable[..., tuple[int, ...]], Callable[[Tensor], Tensor]]] = {
    "every_other_image": (lambda n, *rest: (2 * n, *rest), lambda x: x[::2]),
    "every_other_channel": (lambda n, c, *rest: (n, 2 * c, *rest), lambda x: x[:, ::2]),
    "first_channels": (lambda n, c, *rest: (n, 2 * c, *rest), lambda x: x[:, : x.shape[1] // 2]),
    "last_channels": (lambda n, c, *rest: (n, 2 * c, *rest), lambda x: x[:, x.shape[1] // 2 :]),
}


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, ...],
    num_groups: int = 32,
    channels_last: bool = False,
    affine: bool = True,
    adaptive: bool = False,
    offset: float = 0.0,
    constant: bool = False,
    view: str | None = None,
    silu: bool = True,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(shape))
    n, c = shape[:2]
    whole, cut = _VIEWS[view] if view else (lambda *sizes: sizes, lambda x: x)
    x = torch.full(whole(*shape), offset) if constant else torch.randn(whole(*shape), generator=g) + offset
    x = x.to(device, dtype)
    x = cut(x.to(memory_format=torch.channels_last) if channels_last else x)
    kwargs: dict[str, Any] = {"x": x, "num_groups": num_groups, "silu": silu}
    if affine:
        kwargs["weight"] = (1 + 0.2 * torch.randn(c, generator=g)).to(device, dtype)
        kwargs["bias"] = (0.2 * torch.randn(c, generator=g)).to(device, dtype)
    if adaptive:
        # One projection's two halves, as in a network: views, not separate tensors.
        both = (0.3 * torch.randn(n, 2 * c, generator=g)).to(device, dtype)
        kwargs["scale"], kwargs["shift"] = both.chunk(2, dim=1)
    return kwargs


def _flops(affine: bool = True, adaptive: bool = False, silu: bool = True, **_: Any) -> int:
    """Operations per element: mean 1, variance 3, centring and dividing 2, each scale and shift 2, SiLU 3."""
    return 6 + 2 * affine + 2 * adaptive + 3 * silu


def case(name: str, *shape: int, benchmark: bool = False, falls_back: bool = False, **options: Any) -> Case:
    differentiable = ["x"]
    differentiable += ["weight", "bias"] if options.get("affine", True) else []
    differentiable += ["scale", "shift"] if options.get("adaptive") else []
    return Case(
        name=name,
        op="group_norm_silu",
        fused=group_norm_silu,
        eager=by_name(eager.group_norm_silu, Arguments),
        inputs=functools.partial(_inputs, shape=shape, **options),
        differentiable=tuple(differentiable),
        elements=2 * torch.Size(shape).numel(),
        flops=_flops(**options) * torch.Size(shape).numel(),
        benchmark=benchmark,
        falls_back=falls_back,
    )


def _both_layouts(name: str, *shape: int, **options: Any) -> tuple[Case, Case]:
    return (
        case(f"contiguous-{name}", *shape, **options),
        case(f"channels_last-{name}", *shape, channels_last=True, **options),
    )


_LAST: dict[str, Any] = {"channels_last": True}

CASES = (
    *_both_layouts("plain", 2, 64, 8, 8),
    *_both_layouts("adaptive", 2, 64, 8, 8, adaptive=True),
    *_both_layouts("no_affine", 2, 64, 4, 8, affine=False),
    *_both_layouts("adaptive-no_affine", 3, 64, 4, 8, affine=False, adaptive=True),
    *_both_layouts("no_silu", 2, 64, 6, 6, silu=False),
    # C/G is not a power of two
    *_both_layouts("3_a_group", 2, 96, 7, 9, adaptive=True),
    *_both_layouts("6_a_group", 2, 192, 8, 8),
    *_both_layouts("18_a_group", 1, 576, 4, 4),
    *_both_layouts("36_a_group", 1, 1152, 3, 5),
    *_both_layouts("one_group", 2, 10, 5, 5, num_groups=1),
    *_both_layouts("a_group_each", 2, 10, 5, 5, num_groups=10),
    # sizes that fill vectors badly, and several chunks of pixels
    *_both_layouts("odd", 3, 32, 15, 15),
    *_both_layouts("one_pixel", 4, 64, 1, 1),
    *_both_layouts("one_row", 2, 64, 1, 5),
    *_both_layouts("many_pixels", 1, 6, 151, 149, num_groups=2),
    *_both_layouts("empty_batch", 0, 64, 4, 4),
    # statistics that cancel
    *_both_layouts("offset", 2, 64, 16, 16, offset=1e3),
    *_both_layouts("constant", 2, 64, 8, 8, offset=3.0, constant=True),
    case("1d", 2, 64, 50, adaptive=True),
    case("0d", 5, 96, adaptive=True),
    case("3d", 2, 32, 3, 4, 5),
    # images with gaps between them, then orders that only the reference takes
    *_both_layouts("every_other_image", 2, 64, 6, 6, view="every_other_image"),
    case("contiguous-last_channels", 2, 64, 6, 6, view="last_channels"),
    case("channels_last-first_channels", 2, 64, 6, 6, view="first_channels", falls_back=True, **_LAST),
    case("contiguous-every_other_channel", 2, 64, 6, 6, view="every_other_channel", falls_back=True),
    # the blocks of ADM
    *_both_layouts("4x256x16x16", 4, 256, 16, 16, benchmark=True),
    *_both_layouts("4x256x16x16-adaptive", 4, 256, 16, 16, adaptive=True, benchmark=True),
    *_both_layouts("4x256x32x32", 4, 256, 32, 32, benchmark=True),
    *_both_layouts("4x256x32x32-adaptive", 4, 256, 32, 32, adaptive=True, benchmark=True),
    *_both_layouts("4x128x32x32", 4, 128, 32, 32, benchmark=True),
    *_both_layouts("1x256x64x64", 1, 256, 64, 64, benchmark=True),
)
