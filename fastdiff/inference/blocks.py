"""A U-Net's blocks on fused layers: the same arithmetic as ``fastdiff.nn``, with other boundaries.

In ``fastdiff.nn`` norms and convolutions are separate. Here a convolution also normalises and activates its input, adds
residuals to its result, and computes the moments for the next norm, so an image is read and written once per
convolution.

A block is defined by its parts, independent of their names in the original class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.errors import FastdiffError
from fastdiff.inference import checks
from fastdiff.inference.features import Features, Pair
from fastdiff.inference.packed import Packed, PackedConv, PackedStrided
from fastdiff.nn import AttentionBlock, Downsample, ResBlock, Upsample, split_heads
from fastdiff.nn.layers import downsample_mean, upsample_nearest
from fastdiff.ops import attention, group_norm_silu


@dataclass(frozen=True, slots=True)
class ResidualParts:
    """A residual block: norms with SiLU (weight, bias, num_groups, eps), 3x3 convolutions, a skip connection."""

    norm1: Any
    conv1: Any
    projection: Any  # linear, of the embedding
    norm2: Any
    conv2: Any
    skip: Any  # 1x1 convolution, or None
    scale_shift: bool  # the projection is scale and shift of norm2, else it is added before norm2
    resample: str | None = None  # "up" or "down", behind norm1
    factor: float = 1.0  # of the sum

    @classmethod
    def of(cls, block: ResBlock) -> ResidualParts:
        skip = block.skip_connection
        norm1, _, conv1 = block.in_layers
        norm2, _, _, conv2 = block.out_layers
        return cls(
            norm1=checks.norm(norm1, silu=True),
            conv1=checks.convolution(conv1),
            projection=checks.linear(block.emb_layers[1]),
            norm2=checks.norm(norm2, silu=True),
            conv2=checks.convolution(conv2),
            skip=None if isinstance(skip, nn.Identity) else checks.convolution(skip),
            scale_shift=block.scale_shift_norm,
            resample=block.resample,
            factor=math.sqrt(0.5) if block.rescale else 1.0,
        )


class FusedResBlock:
    """``fastdiff.nn.ResBlock``, given its projected embedding."""

    def __init__(self, parts: ResidualParts, dtype: torch.dtype) -> None:
        self.parts = parts
        self.first, self.second = PackedConv(parts.conv1, dtype), PackedConv(parts.conv2, dtype)
        self.skip = None if parts.skip is None else PackedConv(parts.skip, dtype)

    def packed(self) -> list[Packed]:
        return [p for p in (self.first, self.second, self.skip) if p is not None]

    def __call__(self, inputs: Pair, projected: Tensor) -> Features:
        parts = self.parts
        inputs, h, moments = self._first(inputs, projected)
        scale, shift = projected.chunk(2, dim=1) if parts.scale_shift else (None, None)
        affine = Pair(Features(h, moments)).normalised(parts.norm2, scale, shift)
        residual = inputs.joined() if self.skip is None else self.skip(inputs.left.x, more=inputs.more)[0]
        if parts.factor != 1:
            return Features(self.second(h, affine=affine, silu=True, residual=residual)[0] * parts.factor)
        return Features(*self.second(h, affine=affine, silu=True, residual=residual, moments=True))

    def _first(self, inputs: Pair, projected: Tensor) -> tuple[Pair, Tensor, Tensor]:
        """The inputs at the block's resolution, the first convolution's result and its moments."""
        parts = self.parts
        image_bias = None if parts.scale_shift else projected
        norm = parts.norm1
        if parts.resample == "down":
            x = inputs.joined()
            # In float32, as everywhere here: it is the only dtype that the op takes beside x's own.
            h = group_norm_silu(x, norm.num_groups, norm.weight.float(), norm.bias.float(), eps=norm.eps)
            h, moments = self.first(downsample_mean(h), image_bias=image_bias, moments=True)
            return Pair(Features(downsample_mean(x))), h, moments
        up = parts.resample == "up"
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


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """Self-attention over an image's pixels: norm or None, layers whose outputs are q, k and v, and a last one."""

    norm: Any
    qkv: tuple[Any, ...]  # one layer or three
    project: Any
    heads: int
    new_order: bool  # of the channels, as in ``split_heads``
    residual: bool = True  # the input is added
    factor: float = 1.0  # of the sum

    @classmethod
    def of(cls, block: AttentionBlock) -> AttentionParts:
        return cls(
            norm=checks.norm(block.norm, silu=False),
            qkv=(checks.linear(block.qkv, of_tokens=True),),
            project=checks.linear(block.proj_out, of_tokens=True),
            heads=block.num_heads,
            new_order=block.new_order,
            factor=math.sqrt(0.5) if block.rescale else 1.0,
        )


class FusedAttention:
    """``fastdiff.nn.AttentionBlock``: norm and qkv as one op, heads as strided views, then projection and sum."""

    def __init__(self, parts: AttentionParts, dtype: torch.dtype) -> None:
        self.parts = parts
        first, *others = parts.qkv
        self.qkv, self.project = PackedConv(first, dtype, *others), PackedConv(parts.project, dtype)

    def packed(self) -> list[Packed]:
        return [self.qkv, self.project]

    def __call__(self, inputs: Pair) -> Features:
        parts, x = self.parts, inputs.left.x
        n, _, height, width = x.shape
        affine = None if parts.norm is None else inputs.normalised(parts.norm)
        qkv = self.qkv(x, affine=affine)[0]  # memory [N, T, 3C]
        tokens = qkv.permute(0, 2, 3, 1).flatten(1, 2)
        out = attention(*split_heads(tokens, parts.heads, new_order=parts.new_order))  # memory [N, T, H, D]
        out = out.transpose(1, 2).reshape(n, height, width, -1).permute(0, 3, 1, 2)
        y = self.project(out, residual=x if parts.residual else None)[0]
        return Features(y if parts.factor == 1 else y * parts.factor)


class FusedUpsample:
    """``fastdiff.nn.Upsample``: the convolution reads every pixel four times; nothing is enlarged in memory."""

    def __init__(self, conv: nn.Module | None, dtype: torch.dtype) -> None:
        self.parts = conv
        self.conv = None if conv is None else PackedConv(conv, dtype)

    def packed(self) -> list[Packed]:
        return [] if self.conv is None else [self.conv]

    def __call__(self, inputs: Pair) -> Features:
        x = inputs.joined()
        if self.conv is None:
            return Features(upsample_nearest(x))
        return Features(*self.conv(x, upsample=True, moments=True))


class FusedDownsample:
    """``fastdiff.nn.Downsample``: a convolution of stride 2, or the mean if there is none.

    ``uneven``: zeros are padded at the right and the bottom only.
    """

    def __init__(self, conv: nn.Module | None, dtype: torch.dtype, *, uneven: bool = False) -> None:
        self.parts = conv, uneven
        self.conv = None if conv is None else PackedStrided(conv, dtype)
        self.uneven = uneven

    def packed(self) -> list[Packed]:
        return [] if self.conv is None else [self.conv]

    def __call__(self, inputs: Pair) -> Features:
        x = inputs.joined()
        if self.conv is None:
            return Features(downsample_mean(x))
        return Features(self.conv(F.pad(x, (0, 1, 0, 1)) if self.uneven else x))


class FusedConv:
    """A convolution by itself, or after a norm with SiLU."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, norm: nn.Module | None = None) -> None:
        self.parts = layer, norm
        self.conv, self.norm = PackedConv(layer, dtype), norm

    def packed(self) -> list[Packed]:
        return [self.conv]

    def __call__(self, inputs: Pair) -> Features:
        affine = None if self.norm is None else inputs.normalised(self.norm)
        options = {"affine": affine, "silu": self.norm is not None}
        return Features(*self.conv(inputs.left.x, more=inputs.more, moments=True, **options))


class PlainLayer:
    """One or more layers that are not fused: they are called as they are, with all their hooks.

    Args:
        layers: the layers in order; residual blocks (``embedded``) are also given the embedding, as in the model.
    """

    def __init__(self, *layers: nn.Module, embedded: bool = False) -> None:
        self.parts = layers
        self.layers, self.embedded = layers, embedded

    def packed(self) -> list[Packed]:
        return []

    def __call__(self, inputs: Pair, emb: Tensor) -> Features:
        x = inputs.joined()
        dtype, y = x.dtype, x.to(_working_dtype(self.layers[0], x.dtype))
        for layer in self.layers:
            y = layer(y, emb) if self.embedded else layer(y)
        return Features(y.to(dtype, memory_format=torch.channels_last))


def _working_dtype(layer: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The layer's dtype: that of its convolutions, because norms may be float32."""
    kinds = (nn.Conv2d, nn.Conv1d, nn.Linear)
    weights = (m.weight for m in layer.modules() if isinstance(m, kinds))
    first = next(weights, next(layer.parameters(), None))
    return otherwise if first is None else first.dtype


def fused(layer: nn.Module, dtype: torch.dtype) -> Any:
    """A layer of ``fastdiff.nn``, or a convolution, in its fused form.

    Raises:
        FastdiffError: a layer without a fused form.
    """
    match layer:
        case ResBlock():
            return FusedResBlock(ResidualParts.of(layer), dtype)
        case AttentionBlock():
            return FusedAttention(AttentionParts.of(layer), dtype)
        case Upsample():
            return FusedUpsample(None if layer.conv is None else checks.convolution(layer.conv), dtype)
        case Downsample():
            strided = isinstance(layer.op, nn.Conv2d)
            return FusedDownsample(checks.convolution(layer.op, stride=2) if strided else None, dtype)
        case nn.Conv2d():
            return FusedConv(checks.convolution(layer), dtype)
    raise FastdiffError(f"optimize knows no fused form of {type(layer).__name__}")
