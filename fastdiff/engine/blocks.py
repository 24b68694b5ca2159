"""ADM's blocks on fused layers: the same arithmetic as ``fastdiff.nn``, cut elsewhere.

There a norm ends where a convolution begins. Here a convolution normalises and activates what it reads, adds what
comes to its result, and finds the moments that the next norm needs: an image is read and written once per convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.engine.features import Features, Pair
from fastdiff.engine.packed import Packed, PackedConv, PackedStrided
from fastdiff.nn import AttentionBlock, Downsample, ResBlock, Upsample, split_heads
from fastdiff.nn.resample import downsample_mean, upsample_nearest
from fastdiff.ops import attention, group_norm_silu


class FusedResBlock:
    """``fastdiff.nn.ResBlock``, given its projected embedding."""

    def __init__(self, block: ResBlock, dtype: torch.dtype) -> None:
        self.block = block
        self.first = PackedConv(block.in_layers[2], dtype)
        self.second = PackedConv(block.out_layers[3], dtype)
        skip = block.skip_connection
        self.skip = None if isinstance(skip, nn.Identity) else PackedConv(skip, dtype)

    def packed(self) -> list[Packed]:
        return [p for p in (self.first, self.second, self.skip) if p is not None]

    def __call__(self, inputs: Pair, projected: Tensor) -> Features:
        block = self.block
        inputs, h, moments = self._first(inputs, projected)
        norm = block.out_layers[0]
        scale, shift = projected.chunk(2, dim=1) if block.scale_shift_norm else (None, None)
        affine = Pair(Features(h, moments)).normalised(norm, scale, shift)
        residual = inputs.joined() if self.skip is None else self.skip(inputs.left.x, more=inputs.more)[0]
        if block.rescale:
            return Features(self.second(h, affine=affine, silu=True, residual=residual)[0] * math.sqrt(0.5))
        return Features(*self.second(h, affine=affine, silu=True, residual=residual, moments=True))

    def _first(self, inputs: Pair, projected: Tensor) -> tuple[Pair, Tensor, Tensor]:
        """The inputs at the block's resolution, the first convolution's result and its moments."""
        block = self.block
        image_bias = None if block.scale_shift_norm else projected
        norm: Any = block.in_layers[0]
        if block.resample == "down":
            x = inputs.joined()
            # In float32, as elsewhere here: of another dtype than x's the op takes no other.
            weight, bias = norm.weight.float(), norm.bias.float()
            h = group_norm_silu(x, norm.num_groups, weight, bias, eps=norm.eps, silu=norm.silu)
            h, moments = self.first(downsample_mean(h), image_bias=image_bias, moments=True)
            return Pair(Features(downsample_mean(x))), h, moments
        up = block.resample == "up"
        h, moments = self.first(
            inputs.left.x,
            more=inputs.more,
            affine=inputs.normalised(norm),
            silu=True,
            upsample=up,
            image_bias=image_bias,
            moments=True,
        )
        return (Pair(Features(upsample_nearest(inputs.joined()))) if up else inputs), h, moments


class FusedAttention:
    """``fastdiff.nn.AttentionBlock``: norm and qkv in one, then heads as strided views, then projection and sum."""

    def __init__(self, block: AttentionBlock, dtype: torch.dtype) -> None:
        self.block = block
        self.qkv, self.project = PackedConv(block.qkv, dtype), PackedConv(block.proj_out, dtype)

    def packed(self) -> list[Packed]:
        return [self.qkv, self.project]

    def __call__(self, inputs: Pair) -> Features:
        block, x = self.block, inputs.left.x
        n, c, height, width = x.shape
        qkv = self.qkv(x, affine=inputs.normalised(block.norm))[0]  # memory [N, T, 3C]
        tokens = qkv.permute(0, 2, 3, 1).reshape(n, height * width, 3 * c)
        out = attention(
            *split_heads(tokens, block.num_heads, new_order=block.new_order)
        )  # memory [N, T, H, D]
        out = out.transpose(1, 2).reshape(n, height, width, c).permute(0, 3, 1, 2)
        y = self.project(out, residual=x)[0]
        return Features(y * math.sqrt(0.5) if block.rescale else y)


class FusedUpsample:
    """``fastdiff.nn.Upsample``: the convolution reads every pixel four times; nothing is enlarged in memory."""

    def __init__(self, layer: Upsample, dtype: torch.dtype) -> None:
        self.conv = None if layer.conv is None else PackedConv(layer.conv, dtype)

    def packed(self) -> list[Packed]:
        return [] if self.conv is None else [self.conv]

    def __call__(self, inputs: Pair) -> Features:
        x = inputs.joined()
        if self.conv is None:
            return Features(upsample_nearest(x))
        return Features(*self.conv(x, upsample=True, moments=True))


class FusedDownsample:
    """``fastdiff.nn.Downsample``."""

    def __init__(self, layer: Downsample, dtype: torch.dtype) -> None:
        self.conv = PackedStrided(layer.op, dtype) if isinstance(layer.op, nn.Conv2d) else None

    def packed(self) -> list[Packed]:
        return [] if self.conv is None else [self.conv]

    def __call__(self, inputs: Pair) -> Features:
        x = inputs.joined()
        return Features(F.avg_pool2d(x, 2) if self.conv is None else self.conv(x))


class FusedConv:
    """A convolution that stands alone, or after a norm with SiLU."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, norm: nn.Module | None = None) -> None:
        self.conv, self.norm = PackedConv(layer, dtype), norm

    def packed(self) -> list[Packed]:
        return [self.conv]

    def __call__(self, inputs: Pair) -> Features:
        affine = None if self.norm is None else inputs.normalised(self.norm)
        options = {"affine": affine, "silu": self.norm is not None}
        return Features(*self.conv(inputs.left.x, more=inputs.more, moments=True, **options))
