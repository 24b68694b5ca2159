"""Shared by attention's Triton kernels: a head as a tuple of tiles, and products over such tuples.

``tl.dot`` wants powers of two. A head of D channels is held as the tiles that CHANNELS lists as (first, number):
((0, 64), (64, 32)) for 96 and ((0, 128), (128, 64)) for 192, which pads nothing; in float32, whose products are made
in registers, as more and narrower ones.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops import _triton
from fastdiff.ops._triton import to_nearest

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
def _exist(
    start, channels, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, END: tl.constexpr
):
    """Which of these places are inside the tensor; asked only where some may not be. END: of the tile's channels."""
    rows = start + tl.arange(0, ROWS)
    if MASK and END > D:
        return (rows < limit)[:, None] & (channels < D)[None, :]
    elif MASK:
        return (rows < limit)[:, None]
    else:
        return (channels < D)[None, :]


@triton.jit
def load_tiles(
    base, strides, start, limit, ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """ROWS rows of a head from start on, zeros where there is nothing. MASK: some rows may be past the limit."""
    tiles = ()
    for i in tl.static_range(len(CHANNELS)):
        channels = CHANNELS[i][0] + tl.arange(0, CHANNELS[i][1])
        at = _places(base, strides, start, channels, ROWS)
        if MASK or CHANNELS[i][0] + CHANNELS[i][1] > D:
            inside = _exist(
                start, channels, limit, ROWS, MASK, D, tl.constexpr(CHANNELS[i][0] + CHANNELS[i][1])
            )
            x = tl.load(at, mask=inside, other=0.0)
        else:
            x = tl.load(at)
        tiles = tiles + (x.to(tl.float32) if WIDEN else x,)
    return tiles


@triton.jit
def store_tiles(
    base, strides, start, tiles, factor, limit,
    ROWS: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """tiles * factor, rounded to the tensor's type. factor: a number, or one for each row as [rows, 1]."""
    for i in tl.static_range(len(CHANNELS)):
        channels = CHANNELS[i][0] + tl.arange(0, CHANNELS[i][1])
        at = _places(base, strides, start, channels, ROWS)
        x = to_nearest(tiles[i] * factor, base.dtype.element_ty)
        if MASK or CHANNELS[i][0] + CHANNELS[i][1] > D:
            inside = _exist(
                start, channels, limit, ROWS, MASK, D, tl.constexpr(CHANNELS[i][0] + CHANNELS[i][1])
            )
            tl.store(at, x, mask=inside)
        else:
            tl.store(at, x)


@triton.jit
def zero_tiles(ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(CHANNELS)):
        tiles = tiles + (tl.zeros((ROWS, tl.constexpr(CHANNELS[i][1])), tl.float32),)
    return tiles


@triton.jit
def scaled(tiles, factor):
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (tiles[i] * factor,)
    return result


@triton.jit
def operand(x, dtype: tl.constexpr):
    """float32 -> what a product with tensors of this type takes."""
    x = to_nearest(x, dtype)
    return x.to(tl.float32) if WIDEN else x


@triton.jit
def inner(a, b):
    """a bᵀ: [rows of a, rows of b], summed over channels."""
    s = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")  # float32 is float32, not TF32
    for i in tl.static_range(1, len(a)):
        s = tl.dot(a[i], tl.trans(b[i]), s, input_precision="ieee")
    return s


@triton.jit
def add_product(sums, p, x):
    """sums + p x, summed over the rows of x."""
    result = ()
    for i in tl.static_range(len(x)):
        result = result + (tl.dot(p, x[i], sums[i], input_precision="ieee"),)
    return result
