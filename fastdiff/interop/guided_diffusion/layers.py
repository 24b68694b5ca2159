"""guided-diffusion's layers under its names and arguments, for forks that build networks of their own from them.

They are ``fastdiff.nn``'s layers with another constructor. The networks here are made of ``fastdiff.nn``'s own, which
count as instances of these, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastdiff import nn as layers
from fastdiff.models import trunk
from fastdiff.models.classifier import AttentionPool
from fastdiff.nn.layers import Conv2d
from fastdiff.ops import attention


class _AlsoPlain(type(nn.Module)):
    """``isinstance`` is true for the layers of ``fastdiff.nn`` that a class stands for."""

    def __instancecheck__(cls, instance: Any) -> bool:
        stands_for = cls.__dict__.get("stands_for", ())  # what derives from it stands for itself alone
        return isinstance(instance, stands_for) or type.__instancecheck__(cls, instance)


def check_dims(dims: int) -> None:
    """Raises NotImplementedError for dims other than 2."""
    if dims != 2:
        raise NotImplementedError(f"fastdiff's U-Nets are for images: dims must be 2, got {dims}")


class TimestepBlock(nn.Module, metaclass=_AlsoPlain):
    """A layer that is called with the embedding of timesteps, too."""

    stands_for = layers.ResBlock

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        raise NotImplementedError


class TimestepEmbedSequential(nn.Sequential, metaclass=_AlsoPlain):
    """Layers one after another; those that are a ``TimestepBlock`` also get the embedding."""

    stands_for = trunk.Block

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class _Resampling:
    """The constructor of both; a convolution may lead to other channels."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None) -> None:
        check_dims(dims)
        super().__init__(channels, conv=use_conv)  # pyright: ignore[reportCallIssue] (the layer, which is next)
        self.channels, self.use_conv, self.dims = channels, use_conv, dims
        self.out_channels = out_channels or channels
        if self.out_channels != channels:
            assert use_conv
            self._lead_to(self.out_channels)

    def _lead_to(self, out_channels: int) -> None:
        raise NotImplementedError


class Upsample(_Resampling, layers.Upsample, metaclass=_AlsoPlain):
    """Nearest-neighbour doubling, then a 3x3 convolution if ``use_conv``."""

    stands_for = layers.Upsample

    def _lead_to(self, out_channels: int) -> None:
        self.conv = Conv2d(self.channels, out_channels)


class Downsample(_Resampling, layers.Downsample, metaclass=_AlsoPlain):
    """A 3x3 convolution of stride 2 if ``use_conv``, else the mean of 2x2 blocks."""

    stands_for = layers.Downsample

    def _lead_to(self, out_channels: int) -> None:
        self.op = nn.Conv2d(self.channels, out_channels, 3, stride=2, padding=1)


class ResBlock(layers.ResBlock, metaclass=_AlsoPlain):
    """The residual block; ``use_conv``: a skip connection to other channels is a 3x3 convolution."""

    stands_for = layers.ResBlock

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        check_dims(dims)
        super().__init__(
            channels,
            emb_channels,
            out_channels,
            dropout=dropout,
            scale_shift_norm=use_scale_shift_norm,
            resample="up" if up else "down" if down else None,
        )
        self.channels, self.emb_channels, self.dropout = channels, emb_channels, dropout
        self.out_channels, self.use_conv = out_channels or channels, use_conv
        self.use_checkpoint, self.use_scale_shift_norm = use_checkpoint, use_scale_shift_norm
        self.updown = up or down
        if use_conv and self.out_channels != channels:
            self.skip_connection = Conv2d(channels, self.out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return _maybe_checkpointed(self.use_checkpoint, super().forward, x, emb)


class AttentionBlock(layers.AttentionBlock, metaclass=_AlsoPlain):
    """Self-attention over pixels, ``num_heads`` or ``num_head_channels`` channels each."""

    stands_for = layers.AttentionBlock

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        assert num_head_channels == -1 or channels % num_head_channels == 0
        heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        super().__init__(channels, heads, new_order=use_new_attention_order)
        self.channels, self.use_checkpoint = channels, use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        return _maybe_checkpointed(self.use_checkpoint, super().forward, x)


def _maybe_checkpointed(wanted: bool, function: Any, *args: Tensor) -> Tensor:
    if wanted and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return function(*args)


class QKVAttention(nn.Module):
    """Attention of packed channels [N, 3 H D, T], q before k before v -> [N, H D, T]."""

    _new_order = True

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = layers.split_heads(qkv.transpose(1, 2), self.n_heads, new_order=self._new_order)
        return attention(q, k, v).transpose(2, 3).flatten(1, 2)

    @staticmethod
    def count_flops(model: Any, _x: Any, y: Any) -> None:
        count_flops_attn(model, _x, y)


class QKVAttentionLegacy(QKVAttention):
    """The same for channels that are head by head, [N, H 3 D, T]."""

    _new_order = False


def count_flops_attn(model: Any, _x: Any, y: Any) -> None:
    """Add two matrix products to ``model.total_ops``, for the thop package; y is (the result [N, C, *], ...)."""
    n, channels, *space = y[0].shape
    tokens = torch.Size(space).numel()
    model.total_ops += torch.DoubleTensor([2 * n * tokens**2 * channels])


class AttentionPool2d(AttentionPool):
    """CLIP's pooling: the mean token's answer, [N, C, H, W] -> [N, output_dim]."""

    def __init__(
        self, spacial_dim: int, embed_dim: int, num_heads_channels: int, output_dim: int | None = None
    ) -> None:
        super().__init__(spacial_dim, embed_dim, embed_dim // num_heads_channels, output_dim or embed_dim)
