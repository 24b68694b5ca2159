"""Moments of one tensor and of two side by side, with and without an adaptive norm."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case, by_name
from fastdiff.ops.norm_coefficients import norm_coefficients, reference


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, int],
    num_groups: int,
    more: int = 0,
    affine: bool = True,
    adaptive: bool = False,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(shape))
    n, c = shape

    def some(channels: int) -> Tensor:
        mean, var = torch.randn(n, channels, generator=g), torch.rand(n, channels, generator=g) + 0.5
        full = dtype if dtype == torch.float64 else torch.float32
        return torch.stack([mean, var], dim=2).to(device, full)

    kwargs: dict[str, Any] = {"moments": some(c), "num_groups": num_groups, "eps": 1e-5}
    if more:
        kwargs["more"] = some(more)
    total = c + more
    if affine:
        kwargs["weight"] = (1 + 0.2 * torch.randn(total, generator=g)).to(device, dtype)
        kwargs["bias"] = (0.2 * torch.randn(total, generator=g)).to(device, dtype)
    if adaptive:
        both = (0.3 * torch.randn(n, 2 * total, generator=g)).to(device, dtype)
        kwargs["scale"], kwargs["shift"] = both.chunk(2, dim=1)
    return kwargs


def _case(name: str, *shape: int, num_groups: int = 32, **options: Any) -> Case:
    differentiable = ["moments"]
    differentiable += ["more"] if options.get("more") else []
    differentiable += ["weight", "bias"] if options.get("affine", True) else []
    differentiable += ["scale", "shift"] if options.get("adaptive") else []
    return Case(
        name=name,
        op="norm_coefficients",
        fused=norm_coefficients,
        eager=by_name(reference.norm_coefficients, reference.Arguments),
        inputs=functools.partial(_inputs, shape=shape, num_groups=num_groups, **options),
        differentiable=tuple(differentiable),
        keeps_layout=False,
    )


CASES = (
    _case("plain", 3, 64),
    _case("adaptive", 2, 96, adaptive=True),
    _case("no_affine", 2, 64, affine=False),
    _case("side_by_side", 2, 64, more=32, adaptive=True),
    _case("group_across_both", 2, 40, more=24, num_groups=4),
    _case("a_group_each", 2, 10, num_groups=10),
)
