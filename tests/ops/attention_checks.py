"""attention on one backend: inputs, results and gradients, and their distance from float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.ops.attention import backward_op, forward_op


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(b: int, h: int, t: int, s: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(b, h, n, d, seed=i, dtype=dtype) for i, n in enumerate((t, s, s))]


def results(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float, backend: Backend) -> list[Tensor]:
    """out, lse, dq, dk, dv"""
    with use_backend(backend):
        out, lse = forward_op(q, k, v, scale)
        return [out, lse, *backward_op(grad, q, k, v, out, lse, scale)]


def check(backend: Backend, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> None:
    """Results and gradients against float64 arithmetic, so within rounding of the result; laid out like the inputs."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grad = normal(*q.shape, seed=3, dtype=q.dtype)
    got = results(q, k, v, grad, scale, backend)
    truth = results(*(x.double() for x in (q, k, v, grad)), scale, Backend.REFERENCE)
    units = 4 if backend is Backend.TRITON else 2
    tolerance = 2e-5 if q.dtype == torch.float32 else units * torch.finfo(q.dtype).eps
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    for a, x in zip((got[0], *got[2:]), (q, q, k, v), strict=True):
        assert a.dtype == x.dtype and a.stride() == torch.empty_like(x).stride()
