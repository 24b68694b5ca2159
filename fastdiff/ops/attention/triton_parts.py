"""What attention's Triton kernels share: tiles of strided tensors, and products over a head of two tiles.

A head of D channels is held as D0 + D1 channels, both powers of two as ``tl.dot`` wants them, so that 96 and 192
take no more than themselves (64 + 32, 128 + 64). Where D1 is 0 the second of a pair is never used and costs nothing.
"""

# pyright: reportOptionalOperand=false, reportOptionalMemberAccess=false, reportIndexIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops import _triton

# The interpreter multiplies bfloat16 as if it were an integer. There, what is loaded is widened at once, and what is
# rounded is widened again; on a GPU products take their operands as they are.
WIDEN = tl.constexpr(_triton.INTERPRETED)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def head_of(base, strides, head, heads):
    """Where one head of a tensor [B, H, T, D] starts; in 64 bits, as tensors may have more than 2^31 elements."""
    return base + (head // heads).to(tl.int64) * strides[0] + (head % heads).to(tl.int64) * strides[1]


@triton.jit
def _places(base, strides, start, channels, ROWS: tl.constexpr):
    """Pointers [rows, channels]: one place in 64 bits, and from it offsets in 32, which take half the registers."""
    offsets = tl.arange(0, ROWS)[:, None] * strides[2] + channels[None, :] * strides[3]
    return base + tl.cast(start, tl.int64) * strides[2] + offsets


@triton.jit
def _exist(start, channels, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, END: tl.constexpr):
    """Which of these places are inside the tensor; asked only where some may not be."""
    rows = start + tl.arange(0, ROWS)
    if MASK and END > D:
        return (rows < limit)[:, None] & (channels < D)[None, :]
    elif MASK:
        return (rows < limit)[:, None]
    else:
        return (channels < D)[None, :]


@triton.jit
def _load(base, strides, start, channels, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, END: tl.constexpr):
    at = _places(base, strides, start, channels, ROWS)
    if MASK or END > D:
        x = tl.load(at, mask=_exist(start, channels, limit, ROWS, MASK, D, END), other=0.0)
    else:
        x = tl.load(at)
    return x.to(tl.float32) if WIDEN else x


@triton.jit
def load_tiles(base, strides, start, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """[rows, D0] and [rows, D1] of one head, zeros where there is nothing. MASK: rows may pass the limit."""
    x0 = _load(base, strides, start, tl.arange(0, D0), limit, ROWS, MASK, D, D0)
    x1 = x0
    if D1 > 0:
        x1 = _load(base, strides, start, D0 + tl.arange(0, D1), limit, ROWS, MASK, D, D0 + D1)
    return x0, x1


@triton.jit
def _store(base, strides, start, channels, x, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, END: tl.constexpr):
    at = _places(base, strides, start, channels, ROWS)
    x = x.to(base.dtype.element_ty)
    if MASK or END > D:
        tl.store(at, x, mask=_exist(start, channels, limit, ROWS, MASK, D, END))
    else:
        tl.store(at, x)


@triton.jit
def store_tiles(base, strides, start, x0, x1, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    _store(base, strides, start, tl.arange(0, D0), x0, limit, ROWS, MASK, D, D0)
    if D1 > 0:
        _store(base, strides, start, D0 + tl.arange(0, D1), x1, limit, ROWS, MASK, D, D0 + D1)


@triton.jit
def zero_tiles(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    x0 = tl.zeros((ROWS, D0), tl.float32)
    x1 = x0
    if D1 > 0:
        x1 = tl.zeros((ROWS, D1), tl.float32)
    return x0, x1


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """float32 -> an operand of a product with tensors of this type."""
    x = x.to(TYPE)
    return x.to(tl.float32) if WIDEN else x


@triton.jit
def inner(a0, a1, b0, b1, D1: tl.constexpr):
    """a bᵀ: [rows of a, rows of b], the sum over channels."""
    s = tl.dot(a0, tl.trans(b0), input_precision="ieee")  # float32 is float32, not TF32
    if D1 > 0:
        s = tl.dot(a1, tl.trans(b1), s, input_precision="ieee")
    return s


@triton.jit
def add_product(acc0, acc1, p, x0, x1, D1: tl.constexpr):
    """acc + p x, the sum over rows of x."""
    acc0 = tl.dot(p, x0, acc0, input_precision="ieee")
    if D1 > 0:
        acc1 = tl.dot(p, x1, acc1, input_precision="ieee")
    return acc0, acc1
