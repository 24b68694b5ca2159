"""attention's Triton kernels: what they decline, and how they cut heads. The rest: test_attention.py."""

from __future__ import annotations

import backends
import pytest
import torch

from fastdiff.backend import Backend
from fastdiff.ops.attention import forward_op

if not backends.INTERPRETED:
    pytest.skip("Triton does not interpret here", allow_module_level=True)


def test_what_is_refused() -> None:
    q = torch.empty(1, 1, 4, 257)
    assert "257 channels" in str(forward_op.why_not(Backend.TRITON, q, q, q, 1.0))
    q = torch.empty(1, 1, 1, 8).as_strided((1, 1, 1, 8), (8, 8, 2**24, 1))
    assert "too far apart" in str(forward_op.why_not(Backend.TRITON, q, q, q, 1.0))


def test_heads_are_held_without_padding() -> None:
    from fastdiff.ops.attention.triton_tiles import HEADS, LARGE_SHARED, SMALL_SHARED, plan

    for shared in (LARGE_SHARED, SMALL_SHARED):
        for head in HEADS:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for kernel in ("forward", "queries", "keys"):
                    _, constants = plan(kernel, head, dtype, 64, 64, shared, True)
                    assert sum(width for _, width in constants["CHANNELS"]) == head
