"""Run by test_triton_interpreter.py in a process of its own, where Triton interprets: attention beyond its cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.ops import attention
from fastdiff.ops._triton import INTERPRETED
from fastdiff.ops.attention import backward_op, forward_op
from fastdiff.ops.attention.triton_tiles import HEADS, LARGE_SHARED, SMALL_SHARED, plan

assert INTERPRETED
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _qkv(b: int, h: int, t: int, s: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [_normal(b, h, n, d, seed=i, dtype=dtype) for i, n in enumerate((t, s, s))]


def _both(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float, backend: str) -> list[Tensor]:
    with use_backend(backend):
        out, lse = forward_op(q, k, v, scale)
        return [out, lse, *backward_op(grad, q, k, v, out, lse, scale)]


def _compare(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """Out, lse and gradients against float64, within a few roundings to the dtype."""
    grad = _normal(*q.shape, seed=3, dtype=q.dtype)
    got = _both(q, k, v, grad, scale, "triton")
    truth = _both(*(x.double() for x in (q, k, v, grad)), scale, "reference")
    tolerance = 2e-5 if q.dtype == torch.float32 else 4 * torch.finfo(q.dtype).eps
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    for a, x in zip((got[0], *got[2:]), (q, q, k, v), strict=True):
        assert a.dtype == x.dtype and a.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [1, 16, 17, 32, 48, 64, 96, 100, 128, 192, 250, 256])
def test_every_head_size(head_dim: int, dtype: str) -> None:
    _compare(*_qkv(1, 2, 37, 70, head_dim, DTYPES[dtype]), 1 / math.sqrt(head_dim))


@pytest.mark.parametrize("head_dim", [3, 32, 96, 192])
def test_head_sizes_of_float32(head_dim: int) -> None:
    _compare(*_qkv(1, 1, 35, 34, head_dim), 1 / math.sqrt(head_dim))


@pytest.mark.parametrize("keys", [1, 63, 64, 65, 128, 129, 256, 257])
def test_one_pass_and_several(keys: int) -> None:
    """One block of 64, 128 or 256 keys; the loop above that."""
    _compare(*_qkv(1, 1, 66, keys, 32, torch.bfloat16), 0.2)


@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0], ids=str)
@pytest.mark.parametrize("size", [1.0, 20.0], ids=["small", "large"])
def test_logsumexp(size: float, scale: float) -> None:
    q, k, v = _qkv(1, 1, 37, 100, 24)
    with use_backend("triton"):
        _, lse = forward_op(q * size, k, v, scale)
    truth = torch.logsumexp(scale * size * q.double() @ k.double().mT, dim=-1)
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    torch.testing.assert_close(lse.double(), truth, rtol=2e-6, atol=2e-6)


def _strided(x: Tensor, order: tuple[int, ...], gap: int = 1) -> Tensor:
    """The same values with the dimensions laid out in `order`; every `gap`-th element of the last one is used."""
    memory = x.permute(order)
    spread = memory.new_full((*memory.shape[:-1], memory.shape[-1] * gap), math.nan)
    spread[..., ::gap] = memory
    return spread[..., ::gap].permute([order.index(i) for i in range(4)])


def _close(a, b) -> None:
    torch.testing.assert_close(list(a), list(b), rtol=2**-7, atol=2**-7)


def test_strides_that_do_not_match() -> None:
    """Four tensors, four layouts, gaps among them: the same numbers as contiguous ones."""
    q, k, v = _qkv(2, 3, 40, 45, 40, torch.bfloat16)
    grad = _normal(2, 3, 40, 40, seed=3, dtype=torch.bfloat16)
    views = (
        _strided(q, (0, 2, 1, 3)),
        _strided(k, (0, 1, 3, 2), gap=2),
        _strided(v, (3, 2, 1, 0)),
        _strided(grad, (1, 0, 2, 3), gap=3),
    )
    _close(_both(q, k, v, grad, 0.2, "triton"), _both(*views, 0.2, "triton"))


def test_heads_beyond_32_bits() -> None:
    """Batches 2^30 elements apart: the third begins where a 32-bit offset is negative."""
    memory = torch.from_numpy(np.empty(2**31 + 2048, np.float16))  # touched only where the heads are
    near = _qkv(3, 1, 20, 20, 16, torch.float16)
    far = [memory[i * 512 :].as_strided(x.shape, (2**30, 16, 16, 1)).copy_(x) for i, x in enumerate(near)]
    with use_backend("triton"):
        _close(forward_op(near[0], *far[1:], 0.25), forward_op(*near, 0.25))


def test_nan_goes_where_it_belongs() -> None:
    q, k, v = _qkv(1, 2, 40, 270, 24, torch.bfloat16)
    for poisoned, place, expected in (
        (q, (0, 1, 33, 5), (0, 1, 33)),  # a query: its own row
        (k, (0, 1, 269, 5), (0, 1)),  # a key: all queries of the head
        (k, (0, 1, 0, 5), (0, 1)),  # in the first block: it must outlast the later ones
        (v, (0, 1, 7, 5), (0, 1, slice(None), 5)),  # a value: that channel of the head
    ):
        kept = poisoned[place].item()
        poisoned[place] = math.nan
        with use_backend("triton"):
            out = attention(q, k, v)
        poisoned[place] = kept
        mask = torch.zeros_like(out, dtype=torch.bool)
        mask[expected] = True
        assert torch.equal(out.isnan(), mask)


def test_masked_keys_of_very_small_scores() -> None:
    """lse = -300: what a missing key would weigh is beyond float32, and must not reach dq."""
    q, k, v = torch.full((1, 1, 5, 16), 10.0), torch.full((1, 1, 5, 16), -10.0), _normal(1, 1, 5, 16)
    _compare(q, k, v, 0.2)


def test_no_queries_means_no_gradient() -> None:
    q, k, v = _qkv(1, 2, 0, 5, 8)
    out, _, dq, dk, dv = _both(q, k, v, q, 1.0, "triton")
    assert out.shape == dq.shape == (1, 2, 0, 8)
    assert not dk.any() and not dv.any()


def test_what_is_refused() -> None:
    q = torch.empty(1, 1, 4, 257)
    assert "257 channels" in str(forward_op.why_not(Backend.TRITON, q, q, q, 1.0))
    q = torch.empty(1, 1, 1, 8).as_strided((1, 1, 1, 8), (8, 8, 2**24, 1))
    assert "too far apart" in str(forward_op.why_not(Backend.TRITON, q, q, q, 1.0))
    q = torch.empty(1, 1, 4, 8, dtype=torch.float64)
    assert "float64" in str(forward_op.why_not(Backend.TRITON, q, q, q, 1.0))


@pytest.mark.parametrize("shared", [LARGE_SHARED, SMALL_SHARED])
def test_heads_are_held_without_padding(shared: int) -> None:
    for head in HEADS:
        for dtype in DTYPES.values():
            for kernel in ("forward", "queries", "keys"):
                _, constants = plan(kernel, head, dtype, 64, 64, shared, True)
                assert sum(width for _, width in constants["CHANNELS"]) == head
