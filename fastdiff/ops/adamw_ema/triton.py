"""adamw_ema on Triton: one launch for all tensors, a program for each chunk of the table of addresses.

csrc/common/adamw.h has the same arithmetic in the same order. docs/kernels/gpu.md describes the kernel.
"""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._library import LIBRARIES
from fastdiff.ops._op import Kernel
from fastdiff.ops._triton import store
from fastdiff.ops.adamw_ema.reference import Arguments

_CHUNK = 16384  # elements of a program
_BLOCK = 1024  # elements of a program at a time: 8 a thread
_MAX_RATES = 4
_LISTS = 7  # of tensors, at the beginning of the arguments
# Columns of the table, as csrc/common/adamw.h names them; csrc/torch/adamw_ema.cpp makes it.
_COUNT, _FIRST_CHUNK, _PARAM, _GRAD = (tl.constexpr(column) for column in range(4))
_EXP_AVG, _EXP_AVG_SQ, _STEP, _LOW, _EMA = (tl.constexpr(column) for column in range(4, 9))


@triton.jit
def find_row(table, chunk, tensors, COLUMNS: tl.constexpr):
    """The row of the chunk's tensor, by bisection: the last one that begins at or before the chunk."""
    low, high = 0, tensors
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(table + middle * COLUMNS + _FIRST_CHUNK) <= chunk
        low, high = tl.where(begins, middle, low), tl.where(begins, high, middle)
    return table + low * COLUMNS


@triton.jit
def power(base, n):
    """base^n by squaring, in double."""
    result = base * 0.0 + 1.0
    while n > 0:
        result = tl.where((n & 1) != 0, result * base, result)
        base *= base
        n >>= 1
    return result


@triton.jit
def double(bits):
    """A launch passes floats as float32, so what must be double comes as its bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def lerp(start, end, weight):
    """The form that is exact at the nearer end, as torch.lerp has it."""
    return tl.where(weight < 0.5, start + weight * (end - start), end - (end - start) * (1.0 - weight))


@triton.jit
def part(row, column: tl.constexpr, first, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer to element ``first`` of the tensor whose address stands in a column."""
    start = tl.load(row + column).to(tl.pointer_type(dtype))
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start + first


@triton.jit
def update(
    row, first, mask, factor, numbers, weights,
    GRAD: tl.constexpr, LOW: tl.constexpr, RATES: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one tensor's elements. numbers: the tensor's coefficients; mask: None where all elements exist."""
    shrink, m_weight, v_decay, v_weight, step_size, root, eps = numbers
    at = tl.arange(0, BLOCK)
    p_at = part(row, _PARAM, first, tl.float32, ALIGNED) + at
    m_at = part(row, _EXP_AVG, first, tl.float32, ALIGNED) + at
    v_at = part(row, _EXP_AVG_SQ, first, tl.float32, ALIGNED) + at
    g = tl.load(part(row, _GRAD, first, GRAD, ALIGNED) + at, mask=mask).to(tl.float32) * factor
    m = lerp(tl.load(m_at, mask=mask), g, m_weight)
    v = tl.load(v_at, mask=mask) * v_decay + v_weight * g * g
    denominator = tl.div_rn(tl.sqrt_rn(v), root) + eps
    p = tl.load(p_at, mask=mask) * shrink - tl.div_rn(step_size * m, denominator)
    tl.store(p_at, p, mask=mask)
    tl.store(m_at, m, mask=mask)
    tl.store(v_at, v, mask=mask)
    for rate in tl.static_range(RATES):
        e_at = part(row, _EMA + rate, first, tl.float32, ALIGNED) + at
        tl.store(e_at, lerp(tl.load(e_at, mask=mask), p, weights[rate]), mask=mask)
    if LOW is not None:
        store(part(row, _LOW, first, LOW, ALIGNED) + at, p, mask)


@triton.jit(do_not_specialize=["tensors", "lr", "beta1", "beta2"])
def adamw_ema_forward_kernel(
    table, grad_factor, tensors, lr, beta1, beta2, shrink, m_weight, v_decay, v_weight, eps, weights,
    GRAD: tl.constexpr, LOW: tl.constexpr, RATES: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """lr, beta1 and beta2 are the bits of doubles; the other numbers were rounded to float32 once, on the host."""
    chunk = tl.program_id(0)
    row = find_row(table, chunk, tensors, 8 + RATES)
    step = tl.load(tl.load(row + _STEP).to(tl.pointer_type(tl.float32))).to(tl.int64)
    step_size = (double(lr) / (1.0 - power(double(beta1), step))).to(tl.float32)
    root = tl.sqrt(1.0 - power(double(beta2), step)).to(tl.float32)
    numbers = (shrink, m_weight, v_decay, v_weight, step_size, root, eps)
    factor = 1.0
    if grad_factor is not None:
        factor = tl.load(grad_factor)

    first = (chunk - tl.load(row + _FIRST_CHUNK)) * CHUNK
    end = tl.minimum(tl.load(row + _COUNT), first + CHUNK)
    whole = first + (end - first) // BLOCK * BLOCK  # unmasked, these are moved 16 bytes a thread
    for begin in range(first, whole, BLOCK):
        update(row, begin, None, factor, numbers, weights, GRAD, LOW, RATES, ALIGNED, BLOCK)
    if whole < end:
        mask = tl.arange(0, BLOCK) < end - whole
        update(row, whole, mask, factor, numbers, weights, GRAD, LOW, RATES, ALIGNED, BLOCK)


def _bits(number: float) -> int:
    return struct.unpack("<q", struct.pack("<d", number))[0]


def _launch(
    addresses: Tensor,
    chunks: int,
    grad: torch.dtype,
    low: torch.dtype | None,
    aligned: bool,
    hyper: tuple,
) -> None:
    """addresses: the table, on the kernel's device; hyper: the op's arguments from grad_factor on."""
    grad_factor, lr, beta1, beta2, eps, weight_decay, decays = hyper
    _triton.launch(
        adamw_ema_forward_kernel, (chunks,), addresses.device,
        addresses, grad_factor, len(addresses), _bits(lr), _bits(beta1), _bits(beta2),
        1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, float(eps), tuple(1.0 - decay for decay in decays),
        GRAD=_triton.element(grad), LOW=None if low is None else _triton.element(low), RATES=len(decays),
        ALIGNED=aligned, CHUNK=_CHUNK, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def _run(given: Arguments) -> None:
    grads, low = given.grads, given.low
    torch._foreach_add_(given.steps, 1.0)
    addresses, chunks, aligned, copies = torch.ops.fastdiff._adamw_ema_table(*given[:_LISTS], _CHUNK)
    _launch(addresses, chunks, grads[0].dtype, low[0].dtype if low else None, aligned, given[_LISTS:])
    # Until here nothing may take the memory of the gradients' copies; from here on only what runs after the launch.
    del copies


def _supports(given: Arguments) -> str | None:
    if LIBRARIES.door:
        return LIBRARIES.door
    why_not = torch.ops.fastdiff._adamw_ema_why_not(*given[:_LISTS], len(given.decays))
    return why_not or _triton.why_not(given.params[0])


def _calls() -> None:
    """Gradients' dtypes, averages, copies, tensors that lie anywhere."""
    factor = torch.empty((), device="meta")
    for grad, low, rates, aligned in (
        (torch.float32, None, 0, True),
        (torch.float32, None, 1, True),
        (torch.bfloat16, torch.bfloat16, 2, True),
        (torch.float16, torch.float16, _MAX_RATES, True),
        (torch.float32, None, 1, False),
        (torch.bfloat16, torch.bfloat16, _MAX_RATES, False),
    ):
        addresses = torch.empty((300, 8 + rates), dtype=torch.int64, device="meta")
        numbers = (1e-4, 0.9, 0.999, 1e-8, 0.0, [0.9999] * rates)
        _launch(addresses, 1000, grad, low, aligned, (factor if rates else None, *numbers))


KERNELS = {"adamw_ema": Kernel(_run, _supports)}
CONFIGURATIONS = _triton.Recording(_calls)
