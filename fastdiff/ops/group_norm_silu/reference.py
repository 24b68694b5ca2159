"""group_norm_silu in plain PyTorch: the specification, the fallback and the baseline. Any dtype and layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.group_norm_silu`."""

    x: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    scale: Tensor | None = None  # here [N, C]
    shift: Tensor | None = None
    eps: float = 1e-5
    silu: bool = True

    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.weight, self.bias, self.scale, self.shift


class BackwardArguments(NamedTuple):
    grad: Tensor
    x: Tensor
    mean: Tensor
    rstd: Tensor
    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    silu: bool

    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.weight, self.bias, self.scale, self.shift


def _per_channel(p: Tensor | None, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """[C] or [N, C] -> [1 or N, C, 1, ..., 1] in the computing precision."""
    if p is None:
        return None
    p = p.to(dtype) if p.dim() == 2 else p.to(dtype)[None]
    return p.reshape(*p.shape, *[1] * (x.dim() - 2))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _affine(
    norm: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """(norm * weight + bias) * (1 + scale) + shift, all broadcastable."""
    h = norm if weight is None else norm * weight
    h = h if bias is None else h + bias
    h = h if scale is None else h * (1 + scale)
    return h if shift is None else h + shift


def group_norm_silu(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """-> y like x, mean [N, G], rstd [N, G] (float32; float64 for float64 input)."""
    x, num_groups = given.x, given.num_groups
    dtype = _compute_dtype(x)
    n = x.shape[0]
    if x.numel() == 0:
        stats = x.new_zeros(n, num_groups, dtype=dtype)
        return torch.empty_like(x), stats, stats.clone()
    groups = x.to(dtype).reshape(n, num_groups, -1)  # [N, G, C/G * HW]
    var, mean = torch.var_mean(groups, dim=2, correction=0)
    rstd = torch.rsqrt(var + given.eps)
    norm = ((groups - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    h = _affine(norm, *(_per_channel(p, x, dtype) for p in given.parameters()))
    y = h * torch.sigmoid(h) if given.silu else h
    return torch.empty_like(x).copy_(y), mean, rstd


def group_norm_silu_backward(given: BackwardArguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> dx like x, and in the computing precision dweight [C], dbias [C], dscale [N, C], dshift [N, C].

    With norm = (x - mean) * rstd, u = norm * weight + bias, h = u * (1 + scale) + shift, y = silu(h):
        dh = dy * sigmoid(h) * (1 + h * (1 - sigmoid(h)))
        dshift = sum dh,  dscale = sum dh * u,  dbias = sum dh * (1 + scale),  dweight = sum dh * (1 + scale) * norm
        dnorm = dh * (1 + scale) * weight
        dx = rstd * (dnorm - mean_group(dnorm) - norm * mean_group(dnorm * norm))
    """
    x, rstd = given.x, given.rstd
    dtype = _compute_dtype(x)
    n, c = x.shape[:2]
    pixels = x.shape[2:].numel()
    w, b, s, t = (_per_channel(p, x, dtype) for p in given.parameters())
    groups = x.to(dtype).reshape(n, given.num_groups, c // given.num_groups * pixels)
    norm = ((groups - given.mean[..., None]) * rstd[..., None]).reshape(x.shape)
    u = _affine(norm, w, b, None, None)
    dh = given.grad.to(dtype)
    if given.silu:
        h = _affine(u, None, None, s, t)
        sig = torch.sigmoid(h)
        dh = dh * sig * (1 + h * (1 - sig))
    dshift = dh.reshape(n, c, pixels).sum(dim=2)
    dscale = (dh * u).reshape(n, c, pixels).sum(dim=2)
    du = dh if s is None else dh * (1 + s)
    dbias = du.reshape(n, c, pixels).sum(dim=(0, 2))
    dweight = (du * norm).reshape(n, c, pixels).sum(dim=(0, 2))
    dnorm = (du if w is None else du * w).reshape(groups.shape)
    grouped = norm.reshape(groups.shape)
    if x.numel() == 0:
        return torch.empty_like(x), dweight, dbias, dscale, dshift
    inner = dnorm - dnorm.mean(2, keepdim=True) - grouped * (dnorm * grouped).mean(2, keepdim=True)
    dx = (rstd[..., None] * inner).reshape(x.shape)
    return torch.empty_like(x).copy_(dx), dweight, dbias, dscale, dshift


def statistics_backward(
    dmean: Tensor | None, drstd: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """The gradient that comes through mean and rstd [N, G] themselves, m values each, in x's dtype.

    dx = (dmean - drstd rstd^3 (x - mean)) / m
    """
    n, groups = mean.shape
    count = x.shape[1] // groups * x.shape[2:].numel()
    values = x.to(mean.dtype).reshape(n, groups, count)
    dx = torch.zeros_like(values)
    if dmean is not None:
        dx = dx + dmean[..., None]
    if drstd is not None:
        dx = dx - (drstd * rstd**3)[..., None] * (values - mean[..., None])
    return (dx / count).reshape(x.shape).to(x.dtype)
