"""bernoulli_step on Triton: a program draws whole blocks of four bits of one sample."""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops._triton import in_order, philox_blocks, store
from fastdiff.ops.bernoulli_step.reference import Arguments

_BLOCK = 1024  # elements of a program


@triton.jit
def rounded_product(x, y):
    """float32, rounded by itself (doubles hold it exactly): no compiler can fuse it with the sum after it."""
    return (x.to(tl.float64) * y.to(tl.float64)).to(tl.float32)


@triton.jit
def combine(c, d):
    """c d / (c d + (1 - c) (1 - d)); a d of 0 or 1 is the result."""
    ones, zeros = rounded_product(c, d), rounded_product(1.0 - c, 1.0 - d)
    certain = (d == 0.0) | (d == 1.0)
    return tl.where(certain, d, tl.div_rn(ones, tl.where(certain, 1.0, ones + zeros)))


@triton.jit(do_not_specialize=["stream"])
def bernoulli_step_forward_kernel(
    probability, factor, seeds, step, out, probability_stride, factor_stride, seed_stride, count, stream,
    BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = tl.arange(0, BLOCK)
    mask = element < count - first
    p = tl.load(probability + (sample * probability_stride + first) + element, mask=mask, other=0.0)
    p = p.to(tl.float32)
    if factor is not None:
        d = tl.load(factor + (sample * factor_stride + first) + element, mask=mask, other=0.0)
        p = combine(p, d.to(tl.float32))
    seed = tl.load(seeds + sample * seed_stride)
    w0, w1, w2, w3 = philox_blocks(seed, first // 4 + tl.arange(0, BLOCK // 4), tl.load(step), stream)
    u = in_order(w0, w1, w2, w3).to(tl.float64) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    bits = tl.where(p == p, (u < p.to(tl.float64)).to(tl.float32), p)
    store(out + (sample * count + first) + element, bits, mask)


def _run(given: Arguments) -> Tensor:
    probability, seeds, step, factor, stream = given
    out = torch.empty_like(probability, memory_format=torch.contiguous_format)
    count = math.prod(probability.shape[1:])
    factor_stride = 0 if factor is None or len(factor) == 1 else factor.stride(0)
    _triton.launch(
        bernoulli_step_forward_kernel,
        (triton.cdiv(count, _BLOCK), len(probability)),
        probability.device,
        *(probability, factor, seeds, step, out, probability.stride(0), factor_stride, seeds.stride(0)),
        *(count, stream),
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return out


def _supports(given: Arguments) -> str | None:
    probability, factor = given.probability, given.factor
    if len(probability) > _triton.MAX_GRID_Y:
        return f"{len(probability)} samples at once are too many"
    if reason := _triton.why_not(probability, factor=factor):
        return reason
    for name, t in (("probability", probability), ("factor", factor)):
        if t is not None and t.numel() and not t[0].is_contiguous():
            return f"the samples of {name} {list(t.shape)} are not contiguous"
    return None


def _calls() -> None:
    seeds, step = (torch.empty(n, dtype=torch.int64, device="meta") for n in ((8,), ()))
    for dtype in _triton.DTYPES:
        probability = torch.empty(8, 1, 32, 32, dtype=dtype, device="meta")
        _run(Arguments(probability, seeds, step))
        _run(Arguments(probability, seeds, step, factor=probability))
    _run(Arguments(torch.empty(8, 20, device="meta"), seeds, step))


KERNELS = {"bernoulli_step": Kernel(_run, _supports)}
CONFIGURATIONS = _triton.Recording(_calls)
