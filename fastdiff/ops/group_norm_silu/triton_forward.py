"""Triton kernels of group_norm_silu's forward. docs/kernels/gpu.md describes them.

A tile is [PIXELS, CHANNELS], and the channels are GROUPS whole groups of GROUP each, then nothing. Both layouts are
strides of pixels and channels, one of which is 1: the compiler gives neighbouring elements to neighbouring lanes.
"""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops._triton import silu, store


@triton.jit
def members(GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """[GROUPS padded, CHANNELS]: whether the channel is one of the group's. Groups need not be powers of two."""
    group = tl.arange(0, triton.next_power_of_2(GROUPS))
    return (tl.arange(0, CHANNELS)[None, :] // GROUP) == group[:, None]


@triton.jit
def fold(channels, member):
    """[CHANNELS] -> [GROUPS padded]: sums."""
    return tl.sum(tl.where(member, channels[None, :], 0.0), 1)


@triton.jit
def spread(groups, member):
    """[GROUPS padded] -> [CHANNELS]: each channel's group's."""
    return tl.sum(tl.where(member, groups[:, None], 0.0), 0)


@triton.jit
def block_of_channels(block, groups, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """The first channel of a block, which of its columns are channels, its first group, which of its groups exist."""
    column = tl.arange(0, CHANNELS)
    group = tl.arange(0, triton.next_power_of_2(GROUPS))
    first_group = block * GROUPS
    exists = (column < GROUPS * GROUP) & (column < (groups - first_group) * GROUP)
    return first_group * GROUP, exists, first_group, (group < GROUPS) & (group < groups - first_group)


@triton.jit
def affine(weight, bias, scale, shift, image, channel, exists, scale_stride, shift_stride):
    """(norm weight + bias) (1 + scale) + shift = norm gamma + beta -> gamma, beta [CHANNELS]."""
    gamma = tl.where(exists, 1.0, 0.0)
    beta = tl.where(exists, 0.0, 0.0)
    if weight is not None:
        gamma = tl.load(weight + channel, mask=exists, other=0.0).to(tl.float32)
    if bias is not None:
        beta = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)
    if scale is not None:
        s = 1.0 + tl.load(scale + image * scale_stride + channel, mask=exists, other=0.0).to(tl.float32)
        gamma *= s
        beta *= s
    if shift is not None:
        beta += tl.load(shift + image * shift_stride + channel, mask=exists, other=0.0).to(tl.float32)
    return gamma, beta


@triton.jit
def group_norm_silu_forward_kernel(
    x, y, mean, rstd, weight, bias, scale, shift,
    x_stride, y_stride, pixel_stride, channel_stride, scale_stride, shift_stride, pixels, groups, eps,
    SILU: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Small images: a program holds all pixels of its groups, and x is read once."""
    image = tl.program_id(1).to(tl.int64)
    first, exists, first_group, is_group = block_of_channels(
        tl.program_id(0), groups, GROUP, GROUPS, CHANNELS
    )
    member = members(GROUP, GROUPS, CHANNELS)
    pixel, column = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & exists[None, :]
    offset = pixel[:, None] * pixel_stride + column[None, :] * channel_stride
    start = first.to(tl.int64) * channel_stride

    values = tl.load(x + (image * x_stride + start) + offset, mask=mask, other=0.0).to(tl.float32)
    count = tl.cast(pixels * GROUP, tl.float32)
    rough = fold(tl.sum(values, 0), member) / count
    centered = tl.where(mask, values - spread(rough, member)[None, :], 0.0)
    rest = fold(tl.sum(centered, 0), member) / count  # what rounding left of the mean
    centered = tl.where(mask, centered - spread(rest, member)[None, :], 0.0)
    variance = fold(tl.sum(centered * centered, 0), member) / count
    r = 1.0 / tl.sqrt_rn(variance + eps)
    group = image * groups + first_group + tl.arange(0, triton.next_power_of_2(GROUPS))
    tl.store(mean + group, rough + rest, mask=is_group)
    tl.store(rstd + group, r, mask=is_group)

    gamma, beta = affine(
        weight, bias, scale, shift, image, first + column, exists, scale_stride, shift_stride
    )
    h = centered * (gamma * spread(r, member))[None, :] + beta[None, :]
    if SILU:
        h = silu(h)
    store(y + (image * y_stride + start) + offset, h, mask)


@triton.jit(do_not_specialize=["blocks", "first_unit", "tiles"])
def group_norm_silu_forward_moments_kernel(
    x, means, deviations, x_stride, pixel_stride, channel_stride, pixels, groups, blocks, first_unit, tiles,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Large images, first: mean and squared deviations of one chunk of a unit's pixels; a unit is a block of an image.

    Each place of the tile follows its own pixels (Welford), so that nothing waits before the end, where all places
    are merged (Chan, Golub & LeVeque).
    """
    chunk, unit = tl.program_id(0), first_unit + tl.program_id(1)
    image = (unit // blocks).to(tl.int64)
    first, exists, _, _ = block_of_channels(unit % blocks, groups, GROUP, GROUPS, CHANNELS)
    pixel, column = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    begin = chunk * tiles * PIXELS
    end = tl.minimum(begin + tiles * PIXELS, pixels)
    offset = pixel[:, None] * pixel_stride + column[None, :] * channel_stride
    pointers = x + (image * x_stride + first.to(tl.int64) * channel_stride) + offset

    m = tl.zeros((PIXELS, CHANNELS), tl.float32)
    squares = tl.zeros((PIXELS, CHANNELS), tl.float32)
    n = 0.0
    for at in range(begin, end, PIXELS):
        n += 1.0
        mask = (pixel < end - at)[:, None] & exists[None, :]
        v = tl.load(pointers + tl.cast(at, tl.int64) * pixel_stride, mask=mask, other=0.0).to(tl.float32)
        delta = tl.where(mask, v - m, 0.0)
        m += delta * (1.0 / n)
        squares += delta * (v - m)

    member = members(GROUP, GROUPS, CHANNELS)
    seen = tl.maximum((end - begin - pixel + (PIXELS - 1)) // PIXELS, 0).to(tl.float32)[:, None]
    total = ((end - begin) * GROUP).to(tl.float32)
    rough = fold(tl.sum(m * seen, 0), member) / total
    d = tl.where(exists[None, :], m - spread(rough, member)[None, :], 0.0)
    rest = fold(tl.sum(d * seen, 0), member) / total
    squared = fold(tl.sum(squares + d * d * seen, 0), member) - total * rest * rest
    group = tl.arange(0, triton.next_power_of_2(GROUPS))
    place = (unit.to(tl.int64) * tl.num_programs(0) + chunk) * GROUPS + group
    tl.store(means + place, rough + rest, mask=group < GROUPS)
    tl.store(deviations + place, squared, mask=group < GROUPS)


@triton.jit
def merged(
    means, deviations, unit, chunks, chunk_pixels, pixels,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The moments of a unit's groups from those of its chunks -> mean (in two parts) and variance."""
    chunk, group = tl.arange(0, CHUNKS), tl.arange(0, triton.next_power_of_2(GROUPS))
    mask = (chunk < chunks)[:, None] & (group < GROUPS)[None, :]
    place = (unit.to(tl.int64) * chunks + chunk[:, None]) * GROUPS + group[None, :]
    m = tl.load(means + place, mask=mask, other=0.0)
    squares = tl.load(deviations + place, mask=mask, other=0.0)
    n = tl.minimum(tl.maximum(pixels - chunk * chunk_pixels, 0), chunk_pixels).to(tl.float32)[:, None] * GROUP
    total = tl.cast(pixels, tl.float32) * GROUP
    rough = tl.sum(m * n, 0) / total
    d = tl.where(mask, m - rough[None, :], 0.0)
    rest = tl.sum(d * n, 0) / total
    variance = tl.sum(squares + d * d * n, 0) / total - rest * rest
    return rough, rest, tl.where(variance < 0.0, 0.0, variance)


@triton.jit(do_not_specialize=["blocks", "first_unit", "tiles"])
def group_norm_silu_forward_apply_kernel(
    x, y, mean, rstd, weight, bias, scale, shift, means, deviations,
    x_stride, y_stride, pixel_stride, channel_stride, scale_stride, shift_stride,
    pixels, groups, blocks, first_unit, tiles, eps,
    SILU: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Large images, second: every program merges the moments of its groups and applies them to its chunk."""
    chunk, unit = tl.program_id(0), first_unit + tl.program_id(1)
    image = (unit // blocks).to(tl.int64)
    first, exists, first_group, is_group = block_of_channels(unit % blocks, groups, GROUP, GROUPS, CHANNELS)
    member = members(GROUP, GROUPS, CHANNELS)
    begin = chunk * tiles * PIXELS
    end = tl.minimum(begin + tiles * PIXELS, pixels)
    rough, rest, variance = merged(
        means, deviations, unit, tl.num_programs(0), tiles * PIXELS, pixels, GROUP, GROUPS, CHUNKS
    )
    r = 1.0 / tl.sqrt_rn(variance + eps)
    if chunk == 0:
        group = image * groups + first_group + tl.arange(0, triton.next_power_of_2(GROUPS))
        tl.store(mean + group, rough + rest, mask=is_group)
        tl.store(rstd + group, r, mask=is_group)

    pixel, column = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    gamma, beta = affine(
        weight, bias, scale, shift, image, first + column, exists, scale_stride, shift_stride
    )
    gamma *= spread(r, member)
    beta -= gamma * spread(rest, member)
    center = spread(rough, member)
    offset = pixel[:, None] * pixel_stride + column[None, :] * channel_stride
    start = first.to(tl.int64) * channel_stride
    for at in range(begin, end, PIXELS):
        mask = (pixel < end - at)[:, None] & exists[None, :]
        here = offset + (start + tl.cast(at, tl.int64) * pixel_stride)
        v = tl.load(x + image * x_stride + here, mask=mask, other=0.0).to(tl.float32)
        h = (v - center[None, :]) * gamma[None, :] + beta[None, :]
        if SILU:
            h = silu(h)
        store(y + image * y_stride + here, h, mask)
