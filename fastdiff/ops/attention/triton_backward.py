"""attention's backward as two Triton kernels without atomics: every sum has one owner and one order.

The first owns queries and leaves rowsum(do * out) for the second, which owns keys.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops.attention.triton_parts import (
    LOG2E,
    add_product,
    head_of,
    inner,
    load_tiles,
    operand,
    store_tiles,
    zero_tiles,
)


@triton.jit
def _row_products(a, b):
    """rowsum(a * b) in float32."""
    total = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(a)):
        total += tl.sum(a[i].to(tl.float32) * b[i].to(tl.float32), 1)
    return total


@triton.jit
def attention_backward_queries_kernel(
    grad, q, k, v, out, dq, lse, delta, grad_strides, q_strides, k_strides, v_strides, out_strides, dq_strides,
    heads, queries, keys, scale,
    D: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASK_T: tl.constexpr, MASK_S: tl.constexpr,
):  # fmt: skip
    """dq [B, H, T, D] and delta [B, H, T] = rowsum(do * out). Grid: B H ceil(T / BLOCK_T)."""
    blocks = tl.cdiv(queries, BLOCK_T)
    head = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_T
    rows = first + tl.arange(0, BLOCK_T)
    k = head_of(k, k_strides, head, heads)
    v = head_of(v, v_strides, head, heads)
    TYPE: tl.constexpr = k.dtype.element_ty
    q_tiles = load_tiles(
        head_of(q, q_strides, head, heads), q_strides, first, queries, BLOCK_T, MASK_T, D, CHANNELS
    )
    do = head_of(grad, grad_strides, head, heads)
    do_tiles = load_tiles(do, grad_strides, first, queries, BLOCK_T, MASK_T, D, CHANNELS)
    out = head_of(out, out_strides, head, heads)
    out_tiles = load_tiles(out, out_strides, first, queries, BLOCK_T, MASK_T, D, CHANNELS)
    sums = _row_products(do_tiles, out_tiles)
    at = head.to(tl.int64) * queries + rows
    tl.store(delta + at, sums, mask=rows < queries)
    top = tl.load(lse + at, mask=rows < queries, other=0.0) * LOG2E

    dq_sums = zero_tiles(BLOCK_T, CHANNELS)
    for start in range(0, keys, BLOCK_S):
        k_tiles = load_tiles(k, k_strides, start, keys, BLOCK_S, MASK_S, D, CHANNELS)
        s = inner(q_tiles, k_tiles)
        if MASK_S:
            columns = start + tl.arange(0, BLOCK_S)
            s = tl.where((columns < keys)[None, :], s * (scale * LOG2E), float("-inf"))
            p = tl.math.exp2(s - top[:, None])
        else:
            p = tl.math.exp2(s * (scale * LOG2E) - top[:, None])
        v_tiles = load_tiles(v, v_strides, start, keys, BLOCK_S, MASK_S, D, CHANNELS)
        ds = p * (inner(do_tiles, v_tiles) - sums[:, None])
        dq_sums = add_product(dq_sums, operand(ds, TYPE), k_tiles)

    dq = head_of(dq, dq_strides, head, heads)
    store_tiles(dq, dq_strides, first, dq_sums, scale, queries, BLOCK_T, MASK_T, D, CHANNELS)


@triton.jit
def attention_backward_keys_kernel(
    grad, q, k, v, dk, dv, lse, delta, grad_strides, q_strides, k_strides, v_strides, dk_strides, dv_strides,
    heads, queries, keys, scale,
    D: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASK_T: tl.constexpr, MASK_S: tl.constexpr,
):  # fmt: skip
    """dk, dv [B, H, S, D]. Grid: B H ceil(S / BLOCK_S). Scores stand transposed, [keys, queries]."""
    blocks = tl.cdiv(keys, BLOCK_S)
    head = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_S
    k_tiles = load_tiles(
        head_of(k, k_strides, head, heads), k_strides, first, keys, BLOCK_S, MASK_S, D, CHANNELS
    )
    v_tiles = load_tiles(
        head_of(v, v_strides, head, heads), v_strides, first, keys, BLOCK_S, MASK_S, D, CHANNELS
    )
    q = head_of(q, q_strides, head, heads)
    do = head_of(grad, grad_strides, head, heads)
    TYPE: tl.constexpr = q.dtype.element_ty
    lse += head.to(tl.int64) * queries
    delta += head.to(tl.int64) * queries

    dk_sums = zero_tiles(BLOCK_S, CHANNELS)
    dv_sums = zero_tiles(BLOCK_S, CHANNELS)
    for start in range(0, queries, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        q_tiles = load_tiles(q, q_strides, start, queries, BLOCK_T, MASK_T, D, CHANNELS)
        # A query that does not exist has lse = inf, so that all its p are 0.
        top = tl.load(lse + rows, mask=rows < queries, other=float("inf")) * LOG2E
        p = tl.math.exp2(inner(k_tiles, q_tiles) * (scale * LOG2E) - top[None, :])
        do_tiles = load_tiles(do, grad_strides, start, queries, BLOCK_T, MASK_T, D, CHANNELS)
        dv_sums = add_product(dv_sums, operand(p, TYPE), do_tiles)
        sums = tl.load(delta + rows, mask=rows < queries, other=0.0)
        ds = p * (inner(v_tiles, do_tiles) - sums[None, :])
        dk_sums = add_product(dk_sums, operand(ds, TYPE), q_tiles)

    dk = head_of(dk, dk_strides, head, heads)
    store_tiles(dk, dk_strides, first, dk_sums, scale, keys, BLOCK_S, MASK_S, D, CHANNELS)
    store_tiles(
        head_of(dv, dv_strides, head, heads),
        dv_strides,
        first,
        dv_sums,
        1.0,
        keys,
        BLOCK_S,
        MASK_S,
        D,
        CHANNELS,
    )
