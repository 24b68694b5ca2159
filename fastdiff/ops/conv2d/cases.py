"""Tiles that do not fit, channels that fill vectors badly, every option; and the convolutions of ADM."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case, by_name
from fastdiff.ops.conv2d import conv2d, eager
from fastdiff.ops.conv2d.reference import Arguments


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, int, int, int, int],
    k: int = 3,
    more: int = 0,
    channels_last: bool = True,
    bias: bool = True,
    norm: bool = False,
    silu: bool = False,
    upsample: bool = False,
    image_bias: bool = False,
    residual: bool = False,
    moments: bool = False,
    every_other_image: bool = False,
    algorithm: str = "auto",
    offset: float = 0.0,
) -> dict[str, Any]:
    n, c, out, h, w = shape
    g = torch.Generator().manual_seed(sum(shape))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    factor = 2 if upsample else 1

    def image(channels: int, height: int, width: int) -> Tensor:
        x = torch.randn((2 * n if every_other_image else n), channels, height, width, generator=g)
        x = (x + offset).to(device, dtype).to(memory_format=layout)
        return x[::2] if every_other_image else x

    total = c + more
    kwargs: dict[str, Any] = {"x": image(c, h // factor, w // factor)}
    weight = torch.randn(out, total, k, k, generator=g) / (total * k * k) ** 0.5
    kwargs["weight"] = weight.to(device, dtype)
    if bias:
        kwargs["bias"] = torch.randn(out, generator=g).to(device, dtype)
    if more:
        kwargs["more"] = image(more, h // factor, w // factor)
    if norm:
        full = torch.float64 if dtype == torch.float64 else torch.float32
        affine = 0.3 * torch.randn(n, 3, total, generator=g)
        affine[:, 0] += offset
        affine[:, 1] += 1
        kwargs["affine"] = affine.to(device, full)
    if image_bias:
        kwargs["image_bias"] = torch.randn(n, out, generator=g).to(device, dtype)
    if residual:
        kwargs["residual"] = image(out, h, w)
    return {**kwargs, "silu": silu, "upsample": upsample, "moments": moments, "algorithm": algorithm}


def _flops(n: int, c: int, out: int, h: int, w: int, k: int = 3, more: int = 0, **_: Any) -> int:
    return 2 * n * h * w * (c + more) * out * k * k


def _elements(n: int, c: int, out: int, h: int, w: int, k: int = 3, more: int = 0, **options: Any) -> int:
    """Input, weight, result and residual."""
    pixels, smaller = n * h * w, 4 if options.get("upsample") else 1
    results = 2 if options.get("residual") else 1
    return pixels * (c + more) // smaller + (c + more) * out * k * k + results * pixels * out


def case(name: str, *shape: int, benchmark: bool = False, falls_back: bool = False, **options: Any) -> Case:
    differentiable = ["x", "weight"]
    differentiable += ["bias"] if options.get("bias", True) else []
    differentiable += ["affine"] if options.get("norm") else []
    differentiable += [name for name in ("more", "image_bias", "residual") if options.get(name)]
    return Case(
        name=name,
        op="conv2d",
        fused=conv2d,
        eager=by_name(eager.conv2d, Arguments),
        inputs=functools.partial(_inputs, shape=shape, **options),
        differentiable=tuple(differentiable),
        library_gradients=("weight",),
        elements=_elements(*shape, **options),
        flops=_flops(*shape, **options),
        benchmark=benchmark,
        falls_back=falls_back,
        keeps_layout=False,  # as many channels as it has outputs; tests/ops/test_conv2d.py looks at the layout
    )


_ALL: dict[str, Any] = {"norm": True, "silu": True, "image_bias": True, "residual": True, "moments": True}

CASES = (
    # N, Cin, Cout, H, W
    case("plain", 2, 32, 48, 8, 8),
    case("f2x2", 2, 32, 32, 8, 8, algorithm="f2x2"),
    case("f2x4", 2, 32, 32, 8, 8, algorithm="f2x4"),
    case("f4x4", 2, 32, 32, 8, 8, algorithm="f4x4"),
    case("all-f2x2", 2, 64, 32, 6, 10, algorithm="f2x2", **_ALL),
    case("all-f2x4", 2, 64, 32, 6, 10, algorithm="f2x4", **_ALL),
    case("all-f4x4", 2, 64, 32, 6, 10, algorithm="f4x4", **_ALL),
    case("1x1", 2, 32, 48, 5, 7, k=1),
    case("1x1-all", 2, 32, 48, 5, 7, k=1, **_ALL),
    # tiles that stick out, on either side and on both
    case("odd", 3, 24, 40, 7, 5, algorithm="f4x4", **_ALL),
    case("odd-f2x2", 1, 24, 40, 7, 5, algorithm="f2x2"),
    case("one_pixel", 3, 32, 32, 1, 1, algorithm="f4x4", moments=True),
    case("one_row", 2, 16, 16, 1, 9, algorithm="f2x4"),
    case("one_column", 2, 16, 16, 9, 1, algorithm="f2x4"),
    case("wide", 1, 8, 8, 3, 150, algorithm="f4x4", norm=True, silu=True),
    case("many_rows", 1, 64, 8, 70, 18, algorithm="f4x4", moments=True),
    # channels
    case("image_in", 2, 3, 32, 8, 8),
    case("image_out", 2, 32, 3, 8, 8, norm=True, silu=True),
    case("channels_of_8", 2, 72, 56, 6, 6, algorithm="f4x4", **_ALL),
    case("channels_of_1", 2, 19, 37, 6, 6, algorithm="f4x4", **_ALL),
    case("many_channels", 1, 272, 32, 4, 4, algorithm="f4x4"),
    # options one by one
    case("no_bias", 2, 16, 16, 6, 6, bias=False),
    case("silu", 2, 16, 16, 6, 6, silu=True),
    case("norm", 2, 16, 16, 6, 6, norm=True),
    case("image_bias", 2, 16, 16, 6, 6, image_bias=True),
    case("residual", 2, 16, 16, 6, 6, residual=True),
    case("moments", 2, 16, 16, 6, 6, moments=True),
    case("upsample", 2, 16, 24, 8, 12, upsample=True, norm=True, silu=True),
    case("upsample-f4x4", 1, 16, 24, 6, 10, upsample=True, algorithm="f4x4"),
    case("side_by_side", 2, 32, 24, 6, 6, more=24, **_ALL),
    case("side_by_side-1x1", 2, 32, 24, 6, 6, more=24, k=1, **_ALL),
    case("offset", 2, 32, 16, 8, 8, offset=100.0, norm=True, silu=True),
    case("every_other_image", 2, 16, 16, 6, 6, every_other_image=True, residual=True),
    case("empty_batch", 0, 16, 16, 4, 4, moments=True),
    case("contiguous", 2, 16, 16, 6, 6, channels_last=False, falls_back=True, **_ALL),
    case("side_by_side-odd", 2, 12, 16, 6, 6, more=12, falls_back=True),
    # the blocks of ADM: the convolution of a residual block, first as it is, then with its neighbours
    case("4x128x32x32", 4, 128, 128, 32, 32, benchmark=True),
    case("4x128x32x32-fused", 4, 128, 128, 32, 32, benchmark=True, **_ALL),
    case("4x256x16x16", 4, 256, 256, 16, 16, benchmark=True),
    case("4x256x16x16-fused", 4, 256, 256, 16, 16, benchmark=True, **_ALL),
    case("4x512x16x16-fused", 4, 256, 256, 16, 16, benchmark=True, more=256, **_ALL),
    case("4x256x8x8-fused", 4, 256, 256, 8, 8, benchmark=True, **_ALL),
    case("1x192x64x64-fused", 1, 192, 192, 64, 64, benchmark=True, **_ALL),
    case("4x256x16x16-1x1", 4, 256, 768, 16, 16, benchmark=True, k=1),
)
