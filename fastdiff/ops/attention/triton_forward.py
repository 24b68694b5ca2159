"""attention's forward as a Triton kernel: one program takes one block of queries of one head past all keys."""

# pyright: reportOptionalOperand=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops.attention.triton_parts import (
    LN2,
    add_product,
    head_of,
    inner,
    load_tiles,
    rounded,
    store_tiles,
    zero_tiles,
)


@triton.jit
def _scores(q0, q1, k, k_strides, start, keys, BLOCK_S: tl.constexpr, MASK_S: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """q kᵀ, -inf where there is no key."""
    k0, k1 = load_tiles(k, k_strides, start, keys, BLOCK_S, MASK_S, D, D0, D1)
    s = inner(q0, q1, k0, k1, D1)
    if MASK_S:
        columns = start + tl.arange(0, BLOCK_S)
        s = tl.where((columns < keys)[None, :], s, float("-inf"))
    return s


@triton.jit
def attention_forward_kernel(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides, heads, queries, keys, factor,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    MASK_T: tl.constexpr, MASK_S: tl.constexpr, ONE_PASS: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """q, out [B, H, T, D]; k, v [B, H, S, D]; lse [B, H, T]. Grid: B H ceil(T / BLOCK_T), a head's blocks in a row.

    factor = |scale| log2 e > 0 with the scale's sign moved into q, so that the largest q kᵀ is the largest score.
    ONE_PASS: all keys are one block, whose maximum is the final one: nothing is ever rescaled.
    """
    blocks = tl.cdiv(queries, BLOCK_T)
    head = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_T
    rows = first + tl.arange(0, BLOCK_T)
    k = head_of(k, k_strides, head, heads)
    v = head_of(v, v_strides, head, heads)
    TYPE: tl.constexpr = v.dtype.element_ty
    q0, q1 = load_tiles(head_of(q, q_strides, head, heads), q_strides, first, queries, BLOCK_T, MASK_T, D, D0, D1)
    if SIGN != 1:
        q0, q1 = q0 * SIGN, q1 * SIGN

    acc0, acc1 = zero_tiles(BLOCK_T, D0, D1)
    if ONE_PASS:
        s = _scores(q0, q1, k, k_strides, 0, keys, BLOCK_S, MASK_S, D, D0, D1)
        top = tl.max(s, 1) * factor
        p = tl.math.exp2(s * factor - top[:, None])
        total = tl.sum(p, 1)
        v0, v1 = load_tiles(v, v_strides, 0, keys, BLOCK_S, MASK_S, D, D0, D1)
        acc0, acc1 = add_product(acc0, acc1, rounded(p, TYPE), v0, v1, D1)
    else:
        top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_T,), tl.float32)
        for start in range(0, keys, BLOCK_S):
            s = _scores(q0, q1, k, k_strides, start, keys, BLOCK_S, MASK_S, D, D0, D1)
            higher = tl.maximum(top, tl.max(s, 1) * factor)
            p = tl.math.exp2(s * factor - higher[:, None])
            fade = tl.math.exp2(top - higher)
            total = total * fade + tl.sum(p, 1)
            acc0 = acc0 * fade[:, None]
            if D1 > 0:
                acc1 = acc1 * fade[:, None]
            v0, v1 = load_tiles(v, v_strides, start, keys, BLOCK_S, MASK_S, D, D0, D1)
            acc0, acc1 = add_product(acc0, acc1, rounded(p, TYPE), v0, v1, D1)
            top = higher

    out = head_of(out, out_strides, head, heads)
    acc0 = acc0 / total[:, None]
    if D1 > 0:
        acc1 = acc1 / total[:, None]
    store_tiles(out, out_strides, first, acc0, acc1, queries, BLOCK_T, MASK_T, D, D0, D1)
    at = lse + head.to(tl.int64) * queries + rows
    tl.store(at, (top + tl.math.log2(total)) * LN2, mask=rows < queries)
