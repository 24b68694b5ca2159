"""Replacements for the forward of single diffusers layers, and the reasons why some are left alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.ops import attention, group_norm_silu

_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


def is_silu(module: Any) -> bool:
    """SiLU by PyTorch or by diffusers."""
    return type(module).__name__ in ("SiLU", "FP32SiLU")


def _norm(
    layer: Any, x: Tensor, silu: bool, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    return group_norm_silu(
        x, layer.num_groups, layer.weight, layer.bias, scale=scale, shift=shift, eps=layer.eps, silu=silu
    )


def norm_forward(self: Any, input: Tensor) -> Tensor:
    """nn.GroupNorm."""
    return _norm(self, input, silu=False)


def why_not_residual(block: Any) -> str | None:
    """The reason why a ResnetBlock2D is left alone, or None."""
    if not is_silu(block.nonlinearity):
        return f"its activation is {type(block.nonlinearity).__name__}, not SiLU"
    if type(block.norm1) is not nn.GroupNorm or type(block.norm2) is not nn.GroupNorm:
        return f"its norms are {type(block.norm1).__name__} and {type(block.norm2).__name__}, not GroupNorm"
    # "group" is what autoencoders say, whose blocks have no time embedding: a plain norm.
    if block.time_embedding_norm not in ("default", "scale_shift", "group"):
        return f"time_embedding_norm={block.time_embedding_norm!r}"
    if any(m._forward_hooks or m._forward_pre_hooks for m in (block.norm1, block.norm2, block.nonlinearity)):
        return "its norms or its activation have hooks, which run where they are called"
    return None


def residual_forward(
    self: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    """ResnetBlock2D: both norms with their SiLU, and the second one's scale and shift, are one op each.

    The block's own forward runs if these layers have hooks or have been replaced.
    """
    if why_not_residual(self) is not None:
        return type(self).forward(self, input_tensor, temb, *args, **kwargs)
    h = _norm(self.norm1, input_tensor, silu=True)
    resample = self.upsample or self.downsample
    if resample is not None:
        input_tensor, h = resample(input_tensor), resample(h)
    h = self.conv1(h)
    if temb is not None and self.time_emb_proj is not None:
        temb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
    scale = shift = None
    if self.time_embedding_norm == "scale_shift":
        if temb is None:
            raise ValueError("temb must be given: this block scales and shifts by it")
        scale, shift = temb.chunk(2, dim=1)
    elif self.time_embedding_norm == "default" and temb is not None:
        h = h + temb[:, :, None, None]
    h = self.conv2(self.dropout(_norm(self.norm2, h, silu=True, scale=scale, shift=shift)))
    if self.conv_shortcut is not None:
        input_tensor = self.conv_shortcut(input_tensor)
    h = input_tensor + h
    return h if self.output_scale_factor == 1 else h / self.output_scale_factor


def why_not_attention(block: Any) -> str | None:
    """The reason why an Attention is left alone, or None."""
    processor = type(block.processor).__name__
    if processor not in _PROCESSORS:
        return f"its processor is {processor}, not {' or '.join(_PROCESSORS)}"
    for option in ("spatial_norm", "added_kv_proj_dim"):
        if getattr(block, option, None) is not None:
            return f"it has {option}"
    for option in ("is_causal", "fused_projections", "only_cross_attention"):
        if getattr(block, option, False):
            return f"it has {option}"
    return None


def attention_forward(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Attention on views of the projections, as ``AttnProcessor2_0``: hidden_states [B, T, C] or [B, C, H, W].

    The layer's own forward, with its processor, runs if there is a mask, or if processor or options have changed.
    """
    if attention_mask is not None or why_not_attention(self) is not None:
        return type(self).forward(self, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
    residual, shape = hidden_states, hidden_states.shape
    x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.dim() == 4 else hidden_states
    if self.group_norm is not None:
        x = self.group_norm(x.transpose(1, 2)).transpose(1, 2)
    context = x if encoder_hidden_states is None else encoder_hidden_states
    if encoder_hidden_states is not None and self.norm_cross:
        context = self.norm_encoder_hidden_states(encoder_hidden_states)
    # [B, T, heads D] -> [B, heads, T, D], as views
    q, k, v = (
        layer(t).unflatten(2, (self.heads, -1)).transpose(1, 2)
        for layer, t in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
    )
    q = q if self.norm_q is None else self.norm_q(q)
    k = k if self.norm_k is None else self.norm_k(k)
    x = attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
    x = self.to_out[1](self.to_out[0](x))
    if len(shape) == 4:
        x = x.transpose(1, 2).reshape(shape)
    if self.residual_connection:
        x = x + residual
    return x if self.rescale_output_factor == 1 else x / self.rescale_output_factor
