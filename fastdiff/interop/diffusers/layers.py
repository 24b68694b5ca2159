"""What stands in for the forward of single layers of diffusers, and why it cannot for some."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.ops import attention, group_norm_silu

_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


def is_silu(module: Any) -> bool:
    """SiLU by PyTorch or by diffusers."""
    return type(module).__name__ in ("SiLU", "FP32SiLU")


def has_norm_and_silu(module: Any) -> bool:
    """Whether it ends, as U-Nets and autoencoders do, with a group norm and a SiLU before its last convolution."""
    norm = getattr(module, "conv_norm_out", None)
    return type(norm) is nn.GroupNorm and is_silu(getattr(module, "conv_act", None))


def _norm(
    layer: Any, x: Tensor, silu: bool, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    return group_norm_silu(
        x, layer.num_groups, layer.weight, layer.bias, scale=scale, shift=shift, eps=layer.eps, silu=silu
    )


def norm_forward(self: Any, input: Tensor) -> Tensor:
    """nn.GroupNorm."""
    return _norm(self, input, silu=False)


def norm_silu_forward(self: Any, input: Tensor) -> Tensor:
    """nn.GroupNorm and the SiLU after it."""
    return _norm(self, input, silu=True)


def identity_forward(self: Any, input: Tensor) -> Tensor:
    """An activation that is applied already."""
    return input


def why_not_residual(block: Any) -> str | None:
    """Why a ResnetBlock2D is left alone, or None."""
    if not is_silu(block.nonlinearity):
        return f"its activation is {type(block.nonlinearity).__name__}, not SiLU"
    if type(block.norm1) is not nn.GroupNorm or type(block.norm2) is not nn.GroupNorm:
        return f"its norms are {type(block.norm1).__name__} and {type(block.norm2).__name__}, not GroupNorm"
    # "group" is what autoencoders say, whose blocks have no time embedding: a plain norm.
    if block.time_embedding_norm not in ("default", "scale_shift", "group"):
        return f"time_embedding_norm={block.time_embedding_norm!r}"
    return None


def residual_forward(
    self: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    """ResnetBlock2D: both norms with their SiLU, and the second one's scale and shift, are one op each."""
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
    """Why an Attention is left alone, or None."""
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


class FusedAttnProcessor:
    """Attention on views of the projections. A call with a mask goes to the processor that was there before."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """As ``AttnProcessor2_0``: hidden_states [B, T, C] or [B, C, H, W], encoder_hidden_states [B, S, E]."""
        if attention_mask is not None:
            return self.before(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
        residual, shape = hidden_states, hidden_states.shape
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.dim() == 4 else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(encoder_hidden_states)
        # [B, T, heads D] -> [B, heads, T, D], as views
        q, k, v = (
            layer(t).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, t in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
        )
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        x = attention(q, k, v, scale=attn.scale).transpose(1, 2).flatten(2)
        x = attn.to_out[1](attn.to_out[0](x))
        if len(shape) == 4:
            x = x.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            x = x + residual
        return x if attn.rescale_output_factor == 1 else x / attn.rescale_output_factor
