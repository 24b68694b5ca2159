"""reverse_step on Triton: one launch for every sampler, the same at every step. docs/kernels/gpu.md describes it."""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false
from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops._triton import draw_normals, store
from fastdiff.ops.reverse_step import VARIANCES
from fastdiff.ops.reverse_step.planar import strides as planar_strides
from fastdiff.ops.reverse_step.reference import Arguments
from fastdiff.ops.reverse_step.table import COLUMNS

_BLOCK, _STRIDED_BLOCK = 1024, 512  # elements of a program: 8 a thread; 4 where places take registers
_NONE, _LEARNED_RANGE = tl.constexpr(0), tl.constexpr(2)  # places in VARIANCES
_OUT_X, _OUT_M, _X, _X0, _H1, _H2, _STD, _LOG_MIN, _LOG_MAX, _NOISE_ON, _GUIDANCE = map(
    tl.constexpr, range(len(COLUMNS))
)


@triton.jit
def places(element, pixels, channel_stride, pixel_stride, FLAT: tl.constexpr):
    """Where in an image its elements are, which are numbered as if it were contiguous."""
    if FLAT:
        place = element
    else:
        channel = element // pixels
        pixel = element - channel * pixels
        place = channel * channel_stride + pixel * pixel_stride
    return place


@triton.jit
def read(
    operand, image_stride, channel_stride, pixel_stride, image, element, pixels, mask, FLAT: tl.constexpr
):
    at = places(element, pixels, channel_stride, pixel_stride, FLAT)
    return tl.load(operand + image * image_stride + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def is_nonfinite(value):
    return (tl.abs(value) < float("inf")) == 0


@triton.jit
def model_output(start, second_half, at, mask, WIDE: tl.constexpr):
    """What the model says of the elements, of their variance (WIDE), and whether one of the two is not finite."""
    out = tl.load(start + at, mask=mask, other=0.0).to(tl.float32)
    v, bad = 0.0, is_nonfinite(out)
    if WIDE:
        v = tl.load(start + second_half + at, mask=mask, other=0.0).to(tl.float32)
        bad = bad | is_nonfinite(v)
    return out, v, bad


@triton.jit
def coefficient(row, column: tl.constexpr, column_stride, is_row):
    """float32; NaN if the index is not a row of the table, which the host does not check."""
    return tl.load(row + column * column_stride, mask=is_row, other=float("nan")).to(tl.float32)


@triton.jit
def standard_deviation(row, column_stride, is_row, v, VARIANCE: tl.constexpr):
    """sigma; csrc/common/reverse_step.h folds the formulas in the same way."""
    if VARIANCE == _NONE:
        sigma = coefficient(row, _STD, column_stride, is_row)
    else:
        offset, slope = 0.0, 0.5
        if VARIANCE == _LEARNED_RANGE:
            low, high = (
                coefficient(row, _LOG_MIN, column_stride, is_row),
                coefficient(row, _LOG_MAX, column_stride, is_row),
            )
            offset, slope = (high + low) * 0.25, (high - low) * 0.25
        sigma = coefficient(row, _NOISE_ON, column_stride, is_row) * tl.exp(offset + slope * v)
    return sigma


@triton.jit(do_not_specialize=["stream", "rows"])
def reverse_step_forward_kernel(
    x, model, uncond, h1, h2, noise, seeds, x_next, x0, nonfinite, table, index,
    x_image, x_channel, x_pixel, model_image, model_channel, model_pixel, uncond_image, uncond_channel, uncond_pixel,
    h1_image, h1_channel, h1_pixel, h2_image, h2_channel, h2_pixel, noise_image, noise_channel, noise_pixel,
    out_image, out_channel, out_pixel, elements, pixels, second_half, second_half_uncond,
    seed_stride, rows, row_stride, column_stride, stream,
    VARIANCE: tl.constexpr, WIDE: tl.constexpr, CLIP: tl.constexpr, FLAT: tl.constexpr, ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`second_half`: from a channel of the model's output to the one of its variance. WIDE: there are such channels.

    ALONE: a program is an image's only one, and writes its flag; otherwise flags are 0 before.
    """
    image = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    step = tl.load(index)
    is_row = (step >= 0) & (step < rows)
    row = table + tl.where(is_row, step, 0) * row_stride

    at = places(element, pixels, model_channel, model_pixel, FLAT)
    out, v, bad = model_output(model + image * model_image, second_half, at, mask, WIDE)
    if uncond is not None:
        at = places(element, pixels, uncond_channel, uncond_pixel, FLAT)
        base, _, also_bad = model_output(uncond + image * uncond_image, second_half_uncond, at, mask, WIDE)
        bad = bad | also_bad
        out = base + coefficient(row, _GUIDANCE, column_stride, is_row) * (out - base)

    state = read(x, x_image, x_channel, x_pixel, image, element, pixels, mask, FLAT)
    start = (
        coefficient(row, _OUT_X, column_stride, is_row) * state
        + coefficient(row, _OUT_M, column_stride, is_row) * out
    )
    if CLIP:  # NaN is neither above nor below
        start = tl.where(start > 1.0, 1.0, tl.where(start < -1.0, -1.0, start))
    following = (
        coefficient(row, _X, column_stride, is_row) * state
        + coefficient(row, _X0, column_stride, is_row) * start
    )
    if h1 is not None:
        h = read(h1, h1_image, h1_channel, h1_pixel, image, element, pixels, mask, FLAT)
        following += coefficient(row, _H1, column_stride, is_row) * h
    if h2 is not None:
        h = read(h2, h2_image, h2_channel, h2_pixel, image, element, pixels, mask, FLAT)
        following += coefficient(row, _H2, column_stride, is_row) * h
    if seeds is not None:
        block = tl.program_id(0) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        z = draw_normals(tl.load(seeds + image * seed_stride), block.to(tl.int64), step, stream)
        following += standard_deviation(row, column_stride, is_row, v, VARIANCE) * z
    if noise is not None:
        z = read(noise, noise_image, noise_channel, noise_pixel, image, element, pixels, mask, FLAT)
        following += standard_deviation(row, column_stride, is_row, v, VARIANCE) * z

    at = places(element, pixels, out_channel, out_pixel, FLAT)
    store(x0 + image * out_image + at, start, mask)
    store(x_next + image * out_image + at, following, mask)
    flag = tl.max((bad & mask).to(tl.int32), 0)
    if ALONE:
        tl.store(nonfinite + image, flag)
    else:
        tl.store(nonfinite + image, 1, mask=flag != 0)


_Layout = tuple[tuple[int, ...], tuple[int, ...]] | None  # sizes and strides of an operand


class _Plan(NamedTuple):
    strides: tuple[int | None, ...]  # of images, channels and pixels, one operand after the other
    halves: tuple[int, int]
    elements: int
    pixels: int
    flat: bool


def _layout(t: Tensor | None) -> _Layout:
    return None if t is None else (t.shape, t.stride())


@functools.lru_cache(maxsize=256)
def _plan(seeded: bool, *layouts: _Layout) -> _Plan:
    """Where operands lie: x, model, uncond, h1, h2, noise, results. Flat: all are read in the order of memory.

    That needs all of them contiguous, or all channels_last with as many channels as x, and no noise to draw, whose
    numbering is the contiguous one.
    """
    assert layouts[0] is not None
    channels, pixels = layouts[0][0][1], math.prod(layouts[0][0][2:])
    planar = [None if a is None else planar_strides(*a) for a in layouts]
    there = [p for p in planar if p is not None]
    contiguous = all(
        (pixels == 1 or pixel == 1) and (c == 1 or channel == pixels) for _, channel, pixel, c in there
    )
    interleaved = all(
        (pixels == 1 or pixel == c) and (c == 1 or channel == 1) and c == channels
        for _, channel, pixel, c in there
    )
    flat = contiguous or (interleaved and not seeded)
    strides: list[int | None] = []
    for p in planar:
        strides += [None] * 3 if p is None else [p[0], None, None] if flat else p[:3]
    halves = [channels * pixels if contiguous else channels * p[1] if p else 0 for p in planar[1:3]]
    return _Plan(tuple(strides), (halves[0], halves[1]), channels * pixels, pixels, flat)


def _run(given: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    x, model_output, table, seeds = given.x, given.model_output, given.table, given.seeds
    x_next, x0 = torch.empty_like(x), torch.empty_like(x)
    operands = x, model_output, given.uncond, given.h1, given.h2, given.noise
    plan = _plan(seeds is not None, *map(_layout, operands), _layout(x_next))
    block = _BLOCK if plan.flat else _STRIDED_BLOCK
    programs = triton.cdiv(plan.elements, block)
    flags = x.new_empty if programs == 1 else x.new_zeros
    nonfinite = flags(x.shape[0], dtype=torch.int32)
    _triton.launch(
        reverse_step_forward_kernel, (programs, x.shape[0]), x.device,
        *operands, seeds, x_next, x0, nonfinite, table, given.index, *plan.strides,
        plan.elements, plan.pixels, *plan.halves,
        None if seeds is None else seeds.stride(0), table.shape[0], *table.stride(), given.stream,
        VARIANCE=VARIANCES.index(given.variance), WIDE=model_output.shape[1] != x.shape[1], CLIP=given.clip,
        FLAT=plan.flat, ALONE=programs == 1, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return x_next, x0, nonfinite


def _supports(given: Arguments) -> str | None:
    x, names = given.x, ("model_output", "uncond", "h1", "h2", "noise")
    others = {name: getattr(given, name) for name in names}
    if reason := _triton.why_not(x, **others):
        return reason
    for name, t in {"x": x, **others}.items():
        if t is not None and (reason := _unfit(t.shape, t.stride())):
            return f"{name} with shape {list(t.shape)} and strides {list(t.stride())} {reason}"
    if x.shape[0] > _triton.MAX_GRID_Y:
        return f"{x.shape[0]} images at once are too many"
    return None


@functools.lru_cache(maxsize=256)
def _unfit(sizes: tuple[int, ...], strides: tuple[int, ...]) -> str | None:
    planar = planar_strides(sizes, strides)
    if planar is None:
        return "is neither contiguous nor channels_last"
    _, channel, pixel, channels = planar
    if 2 * channels * channel + math.prod(sizes[2:]) * pixel >= 2**31:
        return "has images of 2^31 elements or more"  # within an image places have 32 bits
    return None


def _calls() -> None:
    """Samplers' steps: deterministic, with drawn noise, with guidance, with history; both layouts, networks' dtypes."""
    table, index = torch.empty((50, 12), device="meta"), torch.empty((), dtype=torch.int64, device="meta")
    seeds = torch.empty(4, dtype=torch.int64, device="meta")
    for dtype, last, size in (
        (torch.bfloat16, False, 64),
        (torch.bfloat16, True, 64),
        (torch.float32, False, 64),
        (torch.float16, True, 28),
    ):
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.empty((4, 3, size, size), device="meta").to(memory_format=layout)
        m = torch.empty((4, 3, size, size), dtype=dtype, device="meta").to(memory_format=layout)
        w = torch.empty((4, 6, size, size), dtype=dtype, device="meta").to(memory_format=layout)
        plain, wide = (functools.partial(Arguments, x, o, table, index, clip=True) for o in (m, w))
        _run(plain())
        _run(plain(h1=x, h2=x))
        _run(plain(seeds=seeds))
        _run(wide(seeds=seeds, variance="learned"))
        _run(wide(seeds=seeds, variance="learned_range"))
        _run(wide(uncond=w, seeds=seeds, variance="learned_range"))
        _run(wide(uncond=w, h1=x, h2=x, noise=x, clip=False, variance="learned_range"))


KERNELS = {"reverse_step": Kernel(_run, _supports)}
CONFIGURATIONS = _triton.Recording(_calls)
