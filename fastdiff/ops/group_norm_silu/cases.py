"""Inputs that break group-norm kernels, and the shapes that ADM spends its time in."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops._case import Case
from fastdiff.ops.group_norm_silu import group_norm_silu


def eager(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """The chain that eager users run."""
    h = F.group_norm(x, num_groups, weight, bias, eps)
    if scale is not None and shift is not None:
        h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    return F.silu(h) if silu else h


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
    strided: bool = False,
    silu: bool = True,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(sum(shape))
    n, c = shape[:2]
    full = (n, 2 * c, *shape[2:]) if strided else shape
    x = torch.full(full, offset) if constant else torch.randn(full, generator=g) + offset
    x = x.to(device, dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    kwargs: dict[str, Any] = {"x": x[:, ::2] if strided else x, "num_groups": num_groups, "silu": silu}
    if affine:
        kwargs["weight"] = (1 + 0.2 * torch.randn(c, generator=g)).to(device, dtype)
        kwargs["bias"] = (0.2 * torch.randn(c, generator=g)).to(device, dtype)
    if adaptive:
        # One projection's two halves, as in a network: views, not separate tensors.
        both = (0.3 * torch.randn(n, 2 * c, generator=g)).to(device, dtype)
        kwargs["scale"], kwargs["shift"] = both.chunk(2, dim=1)
    return kwargs


def _case(name: str, *, benchmark: bool = False, **options: Any) -> Case:
    shape = options["shape"]
    differentiable = ["x"]
    differentiable += ["weight", "bias"] if options.get("affine", True) else []
    differentiable += ["scale", "shift"] if options.get("adaptive") else []
    return Case(
        name=name,
        op="group_norm_silu",
        fused=group_norm_silu,
        eager=eager,
        inputs=functools.partial(_inputs, **options),
        differentiable=tuple(differentiable),
        elements=2 * torch.Size(shape).numel(),
        benchmark=benchmark,
    )


CASES = (
    _case("contiguous", shape=(2, 64, 8, 8)),
    _case("channels_last", shape=(2, 64, 8, 8), channels_last=True),
)
