"""attention's backward as two Triton kernels without atomics: every sum has one owner and one order.

The first owns queries and leaves rowsum(do * out) for the second, which owns keys.
"""

# pyright: reportOptionalOperand=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops.attention.triton_parts import (
    LOG2E,
    add_product,
    head_of,
    inner,
    load_tiles,
    rounded,
    store_tiles,
    zero_tiles,
)


@triton.jit
def _row_products(grad0, grad1, out0, out1, D1: tl.constexpr):
    """rowsum(do * out) in float32."""
    delta = tl.sum(grad0.to(tl.float32) * out0.to(tl.float32), 1)
    if D1 > 0:
        delta += tl.sum(grad1.to(tl.float32) * out1.to(tl.float32), 1)
    return delta


@triton.jit
def attention_backward_queries_kernel(
    grad, q, k, v, out, dq, lse, delta, grad_strides, q_strides, k_strides, v_strides, out_strides, dq_strides,
    heads, queries, keys, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
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
    q0, q1 = load_tiles(head_of(q, q_strides, head, heads), q_strides, first, queries, BLOCK_T, MASK_T, D, D0, D1)
    do = head_of(grad, grad_strides, head, heads)
    do0, do1 = load_tiles(do, grad_strides, first, queries, BLOCK_T, MASK_T, D, D0, D1)
    out = head_of(out, out_strides, head, heads)
    out0, out1 = load_tiles(out, out_strides, first, queries, BLOCK_T, MASK_T, D, D0, D1)
    sums = _row_products(do0, do1, out0, out1, D1)
    at = head.to(tl.int64) * queries + rows
    tl.store(delta + at, sums, mask=rows < queries)
    top = tl.load(lse + at, mask=rows < queries, other=0.0) * LOG2E

    dq0, dq1 = zero_tiles(BLOCK_T, D0, D1)
    for start in range(0, keys, BLOCK_S):
        k0, k1 = load_tiles(k, k_strides, start, keys, BLOCK_S, MASK_S, D, D0, D1)
        s = inner(q0, q1, k0, k1, D1)
        if MASK_S:
            columns = start + tl.arange(0, BLOCK_S)
            s = tl.where((columns < keys)[None, :], s * (scale * LOG2E), float("-inf"))
            p = tl.math.exp2(s - top[:, None])
        else:
            p = tl.math.exp2(s * (scale * LOG2E) - top[:, None])
        v0, v1 = load_tiles(v, v_strides, start, keys, BLOCK_S, MASK_S, D, D0, D1)
        ds = p * (inner(do0, do1, v0, v1, D1) - sums[:, None])
        dq0, dq1 = add_product(dq0, dq1, rounded(ds, TYPE), k0, k1, D1)

    dq = head_of(dq, dq_strides, head, heads)
    store_tiles(dq, dq_strides, first, dq0 * scale, dq1 * scale, queries, BLOCK_T, MASK_T, D, D0, D1)


@triton.jit
def attention_backward_keys_kernel(
    grad, q, k, v, dk, dv, lse, delta, grad_strides, q_strides, k_strides, v_strides, dk_strides, dv_strides,
    heads, queries, keys, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASK_T: tl.constexpr, MASK_S: tl.constexpr,
):  # fmt: skip
    """dk, dv [B, H, S, D]. Grid: B H ceil(S / BLOCK_S). Scores stand transposed, [keys, queries]."""
    blocks = tl.cdiv(keys, BLOCK_S)
    head = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_S
    k0, k1 = load_tiles(head_of(k, k_strides, head, heads), k_strides, first, keys, BLOCK_S, MASK_S, D, D0, D1)
    v0, v1 = load_tiles(head_of(v, v_strides, head, heads), v_strides, first, keys, BLOCK_S, MASK_S, D, D0, D1)
    q = head_of(q, q_strides, head, heads)
    do = head_of(grad, grad_strides, head, heads)
    TYPE: tl.constexpr = q.dtype.element_ty
    lse += head.to(tl.int64) * queries
    delta += head.to(tl.int64) * queries

    dk0, dk1 = zero_tiles(BLOCK_S, D0, D1)
    dv0, dv1 = zero_tiles(BLOCK_S, D0, D1)
    for start in range(0, queries, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        q0, q1 = load_tiles(q, q_strides, start, queries, BLOCK_T, MASK_T, D, D0, D1)
        # A query that does not exist has lse = inf, so that all its p are 0.
        top = tl.load(lse + rows, mask=rows < queries, other=float("inf")) * LOG2E
        p = tl.math.exp2(inner(k0, k1, q0, q1, D1) * (scale * LOG2E) - top[None, :])
        do0, do1 = load_tiles(do, grad_strides, start, queries, BLOCK_T, MASK_T, D, D0, D1)
        dv0, dv1 = add_product(dv0, dv1, rounded(p, TYPE), do0, do1, D1)
        sums = tl.load(delta + rows, mask=rows < queries, other=0.0)
        ds = p * (inner(v0, v1, do0, do1, D1) - sums[None, :])
        dk0, dk1 = add_product(dk0, dk1, rounded(ds, TYPE), q0, q1, D1)

    dk = head_of(dk, dk_strides, head, heads)
    store_tiles(dk, dk_strides, first, dk0 * scale, dk1 * scale, keys, BLOCK_S, MASK_S, D, D0, D1)
    store_tiles(head_of(dv, dv_strides, head, heads), dv_strides, first, dv0, dv1, keys, BLOCK_S, MASK_S, D, D0, D1)
