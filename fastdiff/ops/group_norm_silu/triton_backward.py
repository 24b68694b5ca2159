"""Triton kernels of group_norm_silu's backward: the formulas of reference.py, tiles as in triton_forward.py.

With A = sum of dh and B = sum of dh norm over the pixels of an image's channel, all gradients follow.
"""

# The types of kernels are those of Triton's compiler.
# pyright: reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops._triton import sigmoid, store
from fastdiff.ops.group_norm_silu.triton_forward import affine, block_of_channels, fold, members, spread


@triton.jit
def statistics(mean, rstd, image, groups, first_group, is_group, member, GROUPS: tl.constexpr):
    """The saved mean and rstd of each channel [CHANNELS]."""
    group = image * groups + first_group + tl.arange(0, triton.next_power_of_2(GROUPS))
    m = tl.load(mean + group, mask=is_group, other=0.0)
    r = tl.load(rstd + group, mask=is_group, other=0.0)
    return spread(m, member), spread(r, member)


@triton.jit
def recomputed(v, grad, m, r, gamma, beta, SILU: tl.constexpr):
    """norm and dh of a tile."""
    norm = (v - m[None, :]) * r[None, :]
    if SILU:
        h = norm * gamma[None, :] + beta[None, :]
        s = sigmoid(h)
        grad = grad * s * (1.0 + h * (1.0 - s))
    return norm, grad


@triton.jit
def group_norm_silu_backward_kernel(
    grad, x, dx, mean, rstd, weight, bias, scale, shift, a_sums, b_sums,
    x_stride, y_stride, pixel_stride, channel_stride, scale_stride, shift_stride, pixels, groups,
    SILU: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Small images: x and grad are read once. grad and dx lie alike, images y_stride apart."""
    image = tl.program_id(1).to(tl.int64)
    first, exists, first_group, is_group = block_of_channels(
        tl.program_id(0), groups, GROUP, GROUPS, CHANNELS
    )
    member = members(GROUP, GROUPS, CHANNELS)
    pixel, column = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & exists[None, :]
    offset = pixel[:, None] * pixel_stride + column[None, :] * channel_stride
    start = first.to(tl.int64) * channel_stride

    v = tl.load(x + (image * x_stride + start) + offset, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + (image * y_stride + start) + offset, mask=mask, other=0.0).to(tl.float32)
    m, r = statistics(mean, rstd, image, groups, first_group, is_group, member, GROUPS)
    gamma, beta = affine(
        weight, bias, scale, shift, image, first + column, exists, scale_stride, shift_stride
    )
    norm, dh = recomputed(v, g, m, r, gamma, beta, SILU)
    a, b = tl.sum(dh, 0), tl.sum(dh * norm, 0)
    channel = image * groups * GROUP + first + column
    tl.store(a_sums + channel, a, mask=exists)
    tl.store(b_sums + channel, b, mask=exists)

    count = tl.cast(pixels * GROUP, tl.float32)
    a = r * spread(fold(gamma * a, member) / count, member)
    b = r * spread(fold(gamma * b, member) / count, member)
    store(
        dx + (image * y_stride + start) + offset,
        dh * (r * gamma)[None, :] - a[None, :] - norm * b[None, :],
        mask,
    )


@triton.jit(do_not_specialize=["blocks", "first_unit", "tiles"])
def group_norm_silu_backward_sums_kernel(
    grad, x, mean, rstd, weight, bias, scale, shift, a_parts, b_parts,
    x_stride, y_stride, pixel_stride, channel_stride, scale_stride, shift_stride,
    pixels, groups, blocks, first_unit, tiles,
    SILU: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Large images, first: A and B over one chunk of a unit's pixels."""
    chunk, unit = tl.program_id(0), first_unit + tl.program_id(1)
    image = (unit // blocks).to(tl.int64)
    first, exists, first_group, is_group = block_of_channels(unit % blocks, groups, GROUP, GROUPS, CHANNELS)
    member = members(GROUP, GROUPS, CHANNELS)
    pixel, column = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    m, r = statistics(mean, rstd, image, groups, first_group, is_group, member, GROUPS)
    gamma, beta = affine(
        weight, bias, scale, shift, image, first + column, exists, scale_stride, shift_stride
    )
    offset = pixel[:, None] * pixel_stride + column[None, :] * channel_stride
    start = first.to(tl.int64) * channel_stride
    begin = chunk * tiles * PIXELS
    end = tl.minimum(begin + tiles * PIXELS, pixels)
    a = tl.zeros((PIXELS, CHANNELS), tl.float32)
    b = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for at in range(begin, end, PIXELS):
        mask = (pixel < end - at)[:, None] & exists[None, :]
        here = offset + (start + tl.cast(at, tl.int64) * pixel_stride)
        v = tl.load(x + image * x_stride + here, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + image * y_stride + here, mask=mask, other=0.0).to(tl.float32)
        norm, dh = recomputed(v, g, m, r, gamma, beta, SILU)
        a += dh
        b += dh * norm
    place = (unit.to(tl.int64) * tl.num_programs(0) + chunk) * CHANNELS + column
    tl.store(a_parts + place, tl.sum(a, 0))
    tl.store(b_parts + place, tl.sum(b, 0))


@triton.jit(do_not_specialize=["blocks", "first_unit", "tiles"])
def group_norm_silu_backward_apply_kernel(
    grad, x, dx, mean, rstd, weight, bias, scale, shift, a_parts, b_parts, a_sums, b_sums,
    x_stride, y_stride, pixel_stride, channel_stride, scale_stride, shift_stride,
    pixels, groups, blocks, first_unit, tiles,
    SILU: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Large images, second: every program adds up the chunks' A and B in their order, then computes its dx."""
    chunk, unit = tl.program_id(0), first_unit + tl.program_id(1)
    image = (unit // blocks).to(tl.int64)
    first, exists, first_group, is_group = block_of_channels(unit % blocks, groups, GROUP, GROUPS, CHANNELS)
    member = members(GROUP, GROUPS, CHANNELS)
    pixel, column = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    part = tl.arange(0, CHUNKS)[:, None]
    place = (unit.to(tl.int64) * tl.num_programs(0) + part) * CHANNELS + column[None, :]
    a = tl.sum(tl.load(a_parts + place, mask=part < tl.num_programs(0), other=0.0), 0)
    b = tl.sum(tl.load(b_parts + place, mask=part < tl.num_programs(0), other=0.0), 0)
    if chunk == 0:
        channel = image * groups * GROUP + first + column
        tl.store(a_sums + channel, a, mask=exists)
        tl.store(b_sums + channel, b, mask=exists)

    m, r = statistics(mean, rstd, image, groups, first_group, is_group, member, GROUPS)
    gamma, beta = affine(
        weight, bias, scale, shift, image, first + column, exists, scale_stride, shift_stride
    )
    count = tl.cast(pixels * GROUP, tl.float32)
    a = r * spread(fold(gamma * a, member) / count, member)
    b = r * spread(fold(gamma * b, member) / count, member)
    offset = pixel[:, None] * pixel_stride + column[None, :] * channel_stride
    start = first.to(tl.int64) * channel_stride
    begin = chunk * tiles * PIXELS
    end = tl.minimum(begin + tiles * PIXELS, pixels)
    for at in range(begin, end, PIXELS):
        mask = (pixel < end - at)[:, None] & exists[None, :]
        here = offset + (start + tl.cast(at, tl.int64) * pixel_stride)
        v = tl.load(x + image * x_stride + here, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + image * y_stride + here, mask=mask, other=0.0).to(tl.float32)
        norm, dh = recomputed(v, g, m, r, gamma, beta, SILU)
        store(dx + image * y_stride + here, dh * (r * gamma)[None, :] - a[None, :] - norm * b[None, :], mask)


@triton.jit(do_not_specialize=["images"])
def group_norm_silu_backward_affine_kernel(
    a_sums, b_sums, weight, bias, scale, dweight, dbias, dscale, images, channels, scale_stride,
    IMAGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """From A and B [N, C] to the parameters' gradients, images in their order. A is dshift itself."""
    row, column = tl.arange(0, IMAGES), tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = column < channels
    w, c = affine(weight, bias, None, None, 0, column, exists, 0, 0)
    dw = tl.zeros((IMAGES, CHANNELS), tl.float32)
    db = tl.zeros((IMAGES, CHANNELS), tl.float32)
    for at in range(0, images, IMAGES):
        image = (at + row).to(tl.int64)[:, None]
        mask = (image < images) & exists[None, :]
        place = image * channels + column[None, :]
        a = tl.load(a_sums + place, mask=mask, other=0.0)
        b = tl.load(b_sums + place, mask=mask, other=0.0)
        tl.store(dscale + place, w[None, :] * b + c[None, :] * a, mask=mask)
        if scale is not None:
            s = tl.load(scale + image * scale_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
            a += a * s
            b += b * s
        dw += b
        db += a
    tl.store(dweight + column, tl.sum(dw, 0), mask=exists)
    tl.store(dbias + column, tl.sum(db, 0), mask=exists)
