"""attention's forward as a Triton kernel: one program takes one block of queries of one head past all keys."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops.attention.triton_parts import (
    LN2,
    add_product,
    head_of,
    inner,
    load_tiles,
    operand,
    scaled,
    store_tiles,
    zero_tiles,
)


@triton.jit
def _scores(
    q, k, k_strides, start, keys,
    BLOCK_S: tl.constexpr, MASK_S: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """q kᵀ, -inf where there is no key."""
    tiles = load_tiles(k, k_strides, start, keys, BLOCK_S, MASK_S, D, CHANNELS)
    s = inner(q, tiles)
    if MASK_S:
        columns = start + tl.arange(0, BLOCK_S)
        s = tl.where((columns < keys)[None, :], s, float("-inf"))
    return s


@triton.jit
def attention_forward_kernel(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides, heads, queries, keys, factor,
    D: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
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
    q = load_tiles(
        head_of(q, q_strides, head, heads), q_strides, first, queries, BLOCK_T, MASK_T, D, CHANNELS
    )
    if SIGN != 1:
        q = scaled(q, SIGN)

    acc = zero_tiles(BLOCK_T, CHANNELS)
    if ONE_PASS:
        s = _scores(q, k, k_strides, 0, keys, BLOCK_S, MASK_S, D, CHANNELS)
        top = tl.max(s, 1) * factor
        p = tl.math.exp2(s * factor - top[:, None])
        total = tl.sum(p, 1)
        tiles = load_tiles(v, v_strides, 0, keys, BLOCK_S, MASK_S, D, CHANNELS)
        acc = add_product(acc, operand(p, TYPE), tiles)
    else:
        top = tl.full((BLOCK_T,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_T,), tl.float32)
        for start in range(0, keys, BLOCK_S):
            s = _scores(q, k, k_strides, start, keys, BLOCK_S, MASK_S, D, CHANNELS)
            higher = tl.maximum(top, tl.max(s, 1) * factor)
            # As long as there is no score, -inf less itself would be NaN.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.math.exp2(s * factor - base[:, None])
            fade = tl.math.exp2(top - base)
            total = total * fade + tl.sum(p, 1)
            acc = scaled(acc, fade[:, None])
            tiles = load_tiles(v, v_strides, start, keys, BLOCK_S, MASK_S, D, CHANNELS)
            acc = add_product(acc, operand(p, TYPE), tiles)
            top = higher

    out = head_of(out, out_strides, head, heads)
    store_tiles(out, out_strides, first, acc, 1 / total[:, None], queries, BLOCK_T, MASK_T, D, CHANNELS)
    at = lse + head.to(tl.int64) * queries + rows
    tl.store(at, (top + tl.math.log2(total)) * LN2, mask=rows < queries)
