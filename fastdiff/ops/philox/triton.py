"""philox_normal and philox_bits on Triton: a program draws whole blocks of four words of one sample."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops._triton import draw_normals, in_order, philox_blocks, store
from fastdiff.ops.philox.reference import BitsArguments, NormalArguments

_BLOCK = 1024  # elements of a program: 8 a thread


@triton.jit(do_not_specialize=["step", "stream"])
def philox_normal_forward_kernel(seeds, out, seed_stride, count, step, stream, BLOCK: tl.constexpr):
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    seed = tl.load(seeds + sample * seed_stride)
    z = draw_normals(seed, first // 4 + tl.arange(0, BLOCK // 4), step, stream)
    element = tl.arange(0, BLOCK)
    start = out + (sample * count + first)
    store(start + element, z, element < count - first)


@triton.jit(do_not_specialize=["step", "stream", "first_block"])
def philox_bits_forward_kernel(
    seeds, out, seed_stride, count, step, stream, first_block, BLOCK: tl.constexpr
):
    sample = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    seed = tl.load(seeds + sample * seed_stride)
    block = (first // 4 + first_block) + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = philox_blocks(seed, block, step, stream)
    element = tl.arange(0, BLOCK)
    start = out + (sample * count + first)
    tl.store(start + element, in_order(w0, w1, w2, w3).to(tl.int64), mask=element < count - first)


def _run(kernel, seeds: Tensor, out: Tensor, count: int, *numbers: int) -> Tensor:
    grid = (triton.cdiv(count, _BLOCK), len(seeds))
    arguments = seeds, out, seeds.stride(0), count, *numbers
    _triton.launch(kernel, grid, seeds.device, *arguments, BLOCK=_BLOCK, num_warps=4)
    return out


def _normal(given: NormalArguments) -> Tensor:
    seeds, shape, step, stream, dtype = given
    out = seeds.new_empty((len(seeds), *shape), dtype=dtype)
    return _run(philox_normal_forward_kernel, seeds, out, math.prod(shape), step, stream)


def _bits(given: BitsArguments) -> Tensor:
    seeds, count, step, stream, first_block = given
    out = seeds.new_empty((len(seeds), count))
    return _run(philox_bits_forward_kernel, seeds, out, count, step, stream, first_block)


def _normal_supports(given: NormalArguments) -> str | None:
    if given.dtype not in _triton.DTYPES:
        return f"{given.dtype} is not among float32, bfloat16, float16"
    return _bits_supports(given)


def _bits_supports(given: NormalArguments | BitsArguments) -> str | None:
    seeds = given.seeds
    if not _triton.INTERPRETED and seeds.device.type != "cuda":
        return f"Triton's kernels run on CUDA devices, and the seeds are on {seeds.device}"
    return None if len(seeds) <= _triton.MAX_GRID_Y else f"{len(seeds)} samples at once are too many"


def _calls() -> None:
    seeds = torch.empty(8, dtype=torch.int64, device="meta")
    for dtype in _triton.DTYPES:
        _normal(NormalArguments(seeds, (3, 64, 64), 5, 0, dtype))
    _normal(NormalArguments(seeds, (3, 7, 5), 5, 0, torch.float32))
    _bits(BitsArguments(seeds, 4096, 5, 0, 0))


KERNELS = {
    "philox_normal": Kernel(_normal, _normal_supports),
    "philox_bits": Kernel(_bits, _bits_supports),
}
CONFIGURATIONS = _triton.Recording(_calls)
