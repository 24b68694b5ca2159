"""attention in plain PyTorch: the specification, the fallback and the baseline. Any dtype and layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.ops._like import as_like


class Arguments(NamedTuple):
    """Described at :func:`fastdiff.ops.attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float | None = None


class BackwardArguments(NamedTuple):
    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    scale: float | None = None


def _compute_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def scale_of(scale: float | None, q: Tensor) -> float:
    """The factor of the scores, by default 1/sqrt(D)."""
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def attention(given: Arguments) -> tuple[Tensor, Tensor]:
    """-> out [B, H, T, D] like q, lse [B, H, T] = log sum exp of the scaled scores, in float32 or float64."""
    q, k, v, scale = given
    dtype = _compute_dtype(q)
    scores = scale_of(scale, q) * (q.to(dtype) @ k.to(dtype).transpose(-1, -2))  # [B, H, T, S]
    lse = torch.logsumexp(scores, dim=-1)
    out = torch.softmax(scores, dim=-1) @ v.to(dtype)
    return as_like(out, q), lse


def attention_backward(given: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv like q, k, v.

    With p = softmax(scale * q k^T):
        dv = p^T do,  dp = do v^T,  ds = p * (dp - rowsum(p * dp)),  dq = scale * ds k,  dk = scale * ds^T q

    Kernels, which see the scores block by block, have p = exp(scale * q k^T - lse) and
    rowsum(p * dp) = rowsum(do * out); the reference uses the forms that round less.
    """
    grad, q, k, v, _, _, scale = given
    dtype, scale = _compute_dtype(q), scale_of(scale, q)
    q_, k_, v_, do = (a.to(dtype) for a in (q, k, v, grad))
    p = torch.softmax(scale * (q_ @ k_.transpose(-1, -2)), dim=-1)  # [B, H, T, S]
    dv = p.transpose(-1, -2) @ do
    dp = do @ v_.transpose(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    dq = scale * (ds @ k_)
    dk = scale * (ds.transpose(-1, -2) @ q_)
    return as_like(dq, q), as_like(dk, k), as_like(dv, v)
