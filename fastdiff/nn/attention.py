"""ADM's self-attention block: strided views of one packed qkv go into the attention op."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastdiff.nn.layers import GroupNormSiLU
from fastdiff.nn.resblock import zero_module
from fastdiff.ops import attention


def split_heads(qkv: Tensor, num_heads: int, *, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Packed [N, T, 3C] -> q, k, v [N, H, T, C/H], as views.

    new_order: channels are [3, H, D]; otherwise, in the legacy order, [H, 3, D].
    """
    n, t, width = qkv.shape
    d = width // (3 * num_heads)
    if new_order:
        q, k, v = qkv.view(n, t, 3, num_heads, d).unbind(2)
    else:
        q, k, v = qkv.view(n, t, num_heads, 3, d).unbind(3)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class AttentionBlock(nn.Module):
    """x [N, C, H, W] -> x + proj_out(attention(qkv(GN(x)))) over the H W positions.

    The last projection starts at zero. Parameter names and shapes are guided-diffusion's: norm, qkv [3C, C, 1],
    proj_out [C, C, 1].

    Args:
        channels: C.
        num_heads: H.
        new_order: qkv channels are [3, H, D] rather than [H, 3, D] (``use_new_attention_order``).
        rescale: divide the sum by sqrt(2).
    """

    def __init__(
        self, channels: int, num_heads: int, *, new_order: bool = False, rescale: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.new_order, self.rescale = num_heads, new_order, rescale
        self.norm = GroupNormSiLU(channels, silu=False)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 convolution in the layout at hand: over rows of tokens in channels_last, over planes otherwise.
        of_tokens = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if of_tokens and _need_no_call(self.qkv, self.proj_out):
            h = self._attend_tokens(self.norm(x))
        else:
            h = self._attend_planes(self.norm(x))
        out = x + h
        return out * math.sqrt(0.5) if self.rescale else out

    def _attend_tokens(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, height * width, c)  # a view: memory is already [N, H, W, C]
        qkv = F.linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)  # [N, T, 3C]
        out = attention(*split_heads(qkv, self.num_heads, new_order=self.new_order))  # memory [N, T, H, D]
        out = out.transpose(1, 2).reshape(n, height * width, c)
        out = F.linear(out, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return out.view(n, height, width, c).permute(0, 3, 1, 2)

    def _attend_planes(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x.flatten(2)).transpose(1, 2)  # [N, T, 3C], memory [N, 3C, T]
        out = attention(*split_heads(qkv, self.num_heads, new_order=self.new_order))  # memory [N, H, D, T]
        out = out.transpose(2, 3).flatten(1, 2)  # [N, C, T]
        return self.proj_out(out).view_as(x)


def _need_no_call(*layers: nn.Module) -> bool:
    """True if the layers are their weights and biases only: no hooks, no adapters, no replaced forwards."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    return not any(
        type(layer) is not nn.Conv1d
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or "forward" in layer.__dict__
        for layer in layers
    )
