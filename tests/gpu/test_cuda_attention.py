"""attention's CUDA kernels, emulated: both paths, cards with little shared memory, strides, the order of threads.

Values and gradients of the cases: tests/ops/test_cases.py on the emulated library.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import attention
from fastdiff.ops.attention import backward_op, forward_op

pytestmark = pytest.mark.usefixtures("emulated_cuda")
HALVES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="f16")]


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _qkvg(b: int, h: int, t: int, s: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [_normal(b, h, n, d, seed=i, dtype=dtype) for i, n in enumerate((t, s, s, t))]


def _all(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float, backend: str = "emulation"
) -> tuple[Tensor, ...]:
    """out, lse, dq, dk, dv"""
    with use_backend(backend):
        out, lse = forward_op(q, k, v, scale)
        return out, lse, *backward_op(grad, q, k, v, out, lse, scale)


def _check(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float | None = None) -> tuple[Tensor, ...]:
    """Against float64, within rounding of the result."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    results = _all(q, k, v, grad, scale)
    truth = _all(*(x.double() for x in (q, k, v, grad)), scale, "reference")
    rounding = 1e-5 if q.dtype == torch.float32 else 2 * torch.finfo(q.dtype).eps
    for got, exact in zip(results, truth, strict=True):
        tolerance = rounding if got.dtype == q.dtype else 1e-5
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)
    return results


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", [96, 192, 256])
def test_wide_heads_without_tensor_cores(monkeypatch, head_dim: int, dtype: torch.dtype) -> None:
    """16-bit types on a card before sm_80, with its 64 KB of shared memory."""
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", "75")
    _check(*_qkvg(1, 1, 65, 70, head_dim, dtype))


@pytest.mark.parametrize("capability", [80, 86, 120])
@pytest.mark.parametrize("head_dim", [64, 192, 256])
def test_shared_memory_of_every_card_is_enough(monkeypatch, head_dim: int, capability: int) -> None:
    """163 KB, 99 KB: blocks with fewer warps or fewer tiles at a time."""
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", str(capability))
    _check(*_qkvg(1, 1, 20, 70, head_dim, torch.bfloat16))


@pytest.mark.parametrize("heads", [1, 4], ids=["four_warps", "eight_warps"])
def test_every_geometry(heads: int) -> None:
    """Eight warps where there are blocks enough, and three tiles, all of them asked for at once or two at a time."""
    _check(*_qkvg(1, heads, 130, 150, 64, torch.bfloat16))


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_edges_of_tiles(tokens: int, dtype: torch.dtype) -> None:
    _check(*_qkvg(1, 1, tokens, 66 - tokens, 40, dtype))


@pytest.mark.parametrize("capability", [75, 90], ids=["plain", "mma"])
def test_many_keys(monkeypatch, capability: int) -> None:
    """Few queries, 4096 keys: a sum in 16 bits would stop growing long before the end."""
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", str(capability))
    q, k = torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 8, dtype=torch.bfloat16)
    with use_backend("emulation"):
        out, lse = forward_op(q, k, torch.ones_like(k), 1.0)
    assert torch.equal(out, torch.ones_like(out))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(4096)))


def _strided(x: Tensor, order: tuple[int, ...], gap: int = 1) -> Tensor:
    """The same values with the dimensions laid out in `order`; every `gap`-th element of the last one is used."""
    memory = x.permute(order)
    spread = memory.new_full((*memory.shape[:-1], memory.shape[-1] * gap), math.nan)
    spread[..., ::gap] = memory
    return spread[..., ::gap].permute([order.index(i) for i in range(4)])


@pytest.mark.parametrize("tokens", [64, 44], ids=["packs_of_tokens", "single_tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_strides_change_nothing(dtype: torch.dtype, tokens: int) -> None:
    """Channels or tokens side by side, neither, starts off alignment: the same bits, laid out like the input."""
    q, k, v, grad = _qkvg(2, 2, tokens, tokens, 40, dtype)
    views = (
        _strided(q, (0, 1, 3, 2)),
        _strided(k, (0, 2, 1, 3), gap=2),
        torch.cat([v[..., :1], v], dim=-1)[..., 1:],  # starts 2 or 4 bytes off
        _strided(grad, (3, 2, 1, 0)),
    )
    plain, other = (_all(*x, 0.2) for x in ((q, k, v, grad), views))
    for a, b in zip(plain[:2], other[:2], strict=True):
        assert torch.equal(a, b)
    rounding = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps  # delta is summed in another order
    torch.testing.assert_close(plain[2:], other[2:], rtol=rounding, atol=rounding)
    for x, result in zip((views[0], *views[:3]), (other[0], *other[2:]), strict=True):
        assert result.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("capability", [75, 90], ids=["plain", "mma"])
def test_order_of_threads_does_not_change_a_bit(monkeypatch, capability: int) -> None:
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", str(capability))
    operands = _qkvg(1, 2, 70, 150, 96, torch.bfloat16)
    results = []
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("FASTDIFF_EMULATION_ORDER", order)
        results.append(_all(*operands, 0.1))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_nan_goes_where_it_belongs(dtype: torch.dtype) -> None:
    q, k, v, _ = _qkvg(1, 2, 40, 70, 32, dtype)
    for poisoned, place, expected in (
        (q, (0, 1, 33, 5), (0, 1, 33)),  # a query: its own row
        (k, (0, 1, 69, 5), (0, 1)),  # a key: all queries of the head
        (k, (0, 1, 0, 5), (0, 1)),  # in the first tile: it must outlast the later ones
        (v, (0, 1, 7, 5), (0, 1, slice(None), 5)),  # a value: that channel of the head
    ):
        kept = poisoned[place].item()
        poisoned[place] = math.nan
        with use_backend("emulation"):
            out = attention(q, k, v)
        poisoned[place] = kept
        mask = torch.zeros_like(out, dtype=torch.bool)
        mask[expected] = True
        assert torch.equal(out.isnan(), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_scores_of_minus_infinity_count_nothing(dtype: torch.dtype) -> None:
    """The whole first tile of keys: nothing but zeros to begin with, and no NaN."""
    q = torch.full((1, 1, 3, 32), 1.0, dtype=dtype)
    k, v = torch.zeros(1, 1, 70, 32, dtype=dtype), _normal(1, 1, 70, 32, dtype=dtype)
    k[:, :, :64] = -math.inf
    with use_backend("emulation"):
        out = attention(q, k, v)
    expected = v[:, :, 64:].double().mean(2, keepdim=True).expand(1, 1, 3, 32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)


def test_no_queries_means_no_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, grad = _qkvg(1, 2, 0, 5, 8, dtype)
        _, _, dq, dk, dv = _all(q, k, v, grad, 1.0)
        assert dq.shape == (1, 2, 0, 8) and not dk.any() and not dv.any()


def test_what_no_kernel_takes_is_said() -> None:
    q, k, v, _ = _qkvg(1, 1, 3, 4, 257)
    with use_backend("emulation"):
        with pytest.raises(FastdiffError, match="257 channels"):
            attention(q, k, v)
        with pytest.raises(FastdiffError, match="float64"):
            attention(*(x[..., :8].double() for x in (q, k, v)))
