"""attention's CUDA kernels, emulated: both paths, cards with little shared memory, the order of threads.

What they share with the other backends: test_attention.py.
"""

from __future__ import annotations

import pytest
import torch
from attention_checks import check, normal, qkv, results

from fastdiff.backend import Backend

pytestmark = pytest.mark.usefixtures("emulated_cuda")
CUDA = Backend.EMULATION


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [96, 192, 256])
def test_wide_heads_without_tensor_cores(monkeypatch, head_dim: int, dtype: torch.dtype) -> None:
    """16-bit types on a card before sm_80, with its 64 KB of shared memory."""
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", "75")
    check(CUDA, *qkv(1, 1, 65, 70, head_dim, dtype))


def test_sums_are_float32_without_tensor_cores(monkeypatch) -> None:
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", "75")
    q, k = torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 8, dtype=torch.bfloat16)
    out, *_ = results(q, k, torch.ones_like(k), q, 1.0, CUDA)
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("capability", [80, 86, 120])
@pytest.mark.parametrize("head_dim", [64, 192, 256])
def test_shared_memory_of_every_card_is_enough(monkeypatch, head_dim: int, capability: int) -> None:
    """163 KB, 99 KB: blocks with fewer warps or fewer tiles at a time."""
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", str(capability))
    check(CUDA, *qkv(1, 1, 20, 70, head_dim, torch.bfloat16))


@pytest.mark.parametrize("heads", [1, 4], ids=["four_warps", "eight_warps"])
def test_every_geometry(heads: int) -> None:
    """Eight warps where there are blocks enough, and three tiles, all of them asked for at once or two at a time."""
    check(CUDA, *qkv(1, heads, 130, 150, 64, torch.bfloat16))


@pytest.mark.parametrize("capability", [75, 90], ids=["plain", "mma"])
def test_order_of_threads_does_not_change_a_bit(monkeypatch, capability: int) -> None:
    monkeypatch.setenv("FASTDIFF_EMULATION_CAPABILITY", str(capability))
    operands = [*qkv(1, 2, 70, 150, 96, torch.bfloat16), normal(1, 2, 70, 96, seed=3, dtype=torch.bfloat16)]
    bits = []
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("FASTDIFF_EMULATION_ORDER", order)
        bits.append(results(*operands, 0.1, CUDA))
    for other in bits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(bits[0], other, strict=True))
