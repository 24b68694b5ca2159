"""diffusers' ``UNet2DModel`` on fused blocks.

The package itself is never imported: whoever has a model has imported it. Classes are known by their names, and
what a name does not settle is read from the layers. Whatever is not covered is refused before anything is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.blocks import (
    AttentionParts,
    FusedAttention,
    FusedConv,
    FusedDownsample,
    FusedResBlock,
    FusedUpsample,
    ResidualParts,
)
from fastdiff.engine.trunk import FusedTrunk
from fastdiff.errors import FastdiffError

_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


def unet2d_class(model: object) -> type | None:
    """``UNet2DModel`` if this is one or derived from it, else None."""
    for each in type(model).__mro__:
        if each.__name__ == "UNet2DModel" and each.__module__.split(".")[0] == "diffusers":
            return each
    return None


class FusedUNet2D(FusedTrunk):
    """Takes the place of ``UNet2DModel.forward``."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        known: Any = unet2d_class(model)
        _require(type(model).forward is known.forward, f"a forward of its own, as {type(model).__name__} has")
        self._output = sys.modules[known.__module__].UNet2DOutput
        first = FusedConv(_conv(model.conv_in), dtype)
        down = [[first], *(layers for block in model.down_blocks for layers in _down(block, dtype))]
        up = [layers for block in model.up_blocks for layers in _up(block, dtype)]
        _activation(model.conv_act)
        out = FusedConv(_conv(model.conv_out), dtype, norm=_norm(model.conv_norm_out))
        super().__init__(
            model, "forward", dtype, down=down, middle=_middle(model.mid_block, dtype), up=up, out=out
        )
        self._factor = 2 ** sum(block.downsamplers is not None for block in model.down_blocks)

    def __call__(
        self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """As ``UNet2DModel.forward``."""
        if not self.applies(sample):
            return self.plain(sample, timestep, class_labels, return_dict)
        model = self.model
        self._check(sample)
        if model.config.center_input_sample:
            sample = 2 * sample - 1
        timesteps = _timesteps(timestep, len(sample))
        out = self.run(sample, self._embedding(timesteps, class_labels))
        if model.config.time_embedding_type == "fourier":
            out = out / timesteps[:, None, None, None]
        return self._output(sample=out) if return_dict else (out,)

    def _embedding(self, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
        """timesteps [N], labels [N], or [N, E] if they are embeddings already -> [N, E]."""
        model, classes = self.model, self.model.class_embedding
        dtype = model.time_embedding.linear_1.weight.dtype
        emb = model.time_embedding(model.time_proj(timesteps).to(dtype))
        if classes is None and class_labels is not None:
            raise FastdiffError("this model has no class embedding; leave out class_labels")
        if classes is None:
            return emb
        if class_labels is None:
            raise FastdiffError("this model has a class embedding; give class_labels, one for each image")
        if model.config.class_embed_type == "timestep":
            class_labels = model.time_proj(class_labels).to(dtype)
        return emb + classes(class_labels).to(dtype)

    def _check(self, sample: Any) -> None:
        channels = self.model.conv_in.in_channels
        if not isinstance(sample, Tensor) or sample.dim() != 4 or sample.shape[1] != channels:
            given = list(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
            raise FastdiffError(f"sample must be a tensor of shape [N, {channels}, H, W], got {given}")
        if not sample.is_floating_point():
            raise FastdiffError(f"sample must be floating-point, got {sample.dtype}")
        height, width = sample.shape[2:]
        if height % self._factor or width % self._factor or not height * width:
            raise FastdiffError(
                f"height and width must be multiples of {self._factor} for this network to halve, got {height}x{width}"
            )


def _timesteps(timestep: Any, n: int) -> Tensor:
    """[N], from a number, a tensor of one, or [N]; a number is cut to a whole one, as diffusers does."""
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor([timestep], dtype=torch.long)
    return timestep.expand(n) if timestep.dim() == 0 else timestep * torch.ones(n, dtype=timestep.dtype)


def _down(block: Any, dtype: torch.dtype) -> Iterable[list[Any]]:
    _require(type(block).__name__ in _DOWN, f"the block type {type(block).__name__}")
    yield from _pairs(block, dtype)
    for layer in block.downsamplers or ():
        yield [_sampler(layer, "Downsample2D", dtype)]


def _up(block: Any, dtype: torch.dtype) -> list[list[Any]]:
    _require(type(block).__name__ in _UP, f"the block type {type(block).__name__}")
    blocks = _pairs(block, dtype)
    blocks[-1] += [_sampler(layer, "Upsample2D", dtype) for layer in block.upsamplers or ()]
    return blocks


def _pairs(block: Any, dtype: torch.dtype) -> list[list[Any]]:
    """Residual blocks, each with the attention that may follow it."""
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    return [
        [_residual(resnet, dtype), *([] if attention is None else [_attention(attention, dtype)])]
        for resnet, attention in zip(block.resnets, attentions, strict=True)
    ]


def _middle(block: Any, dtype: torch.dtype) -> list[Any]:
    if block is None:
        return []
    name = type(block).__name__
    _require(name == "UNetMidBlock2D", f"the block type {name}")
    layers: list[Any] = [_residual(block.resnets[0], dtype)]
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        layers += [] if attention is None else [_attention(attention, dtype)]
        layers.append(_residual(resnet, dtype))
    return layers


def _residual(block: Any, dtype: torch.dtype) -> FusedResBlock:
    name = type(block).__name__
    _require(name == "ResnetBlock2D", f"{name} (resnet_time_scale_shift)")
    style = block.time_embedding_norm
    _require(style in ("default", "scale_shift"), f"resnet_time_scale_shift={style!r}")
    _require(block.time_emb_proj is not None, "residual blocks without a time embedding (temb_channels=None)")
    _require(not block.skip_time_act, "residual blocks with skip_time_act=True")
    _activation(block.nonlinearity)
    for layer, kind in ((block.upsample, "Upsample2D"), (block.downsample, "Downsample2D")):
        plain = layer is None or (type(layer).__name__ == kind and not layer.use_conv and layer.norm is None)
        _require(plain, "residual blocks that resample by a kernel")
    parts = ResidualParts(
        norm1=_norm(block.norm1),
        conv1=_conv(block.conv1),
        projection=_linear(block.time_emb_proj),
        norm2=_norm(block.norm2),
        conv2=_conv(block.conv2),
        skip=None if block.conv_shortcut is None else _conv(block.conv_shortcut),
        scale_shift=style == "scale_shift",
        resample="up" if block.upsample is not None else "down" if block.downsample is not None else None,
        factor=1 / block.output_scale_factor,
    )
    return FusedResBlock(parts, dtype)


def _attention(block: Any, dtype: torch.dtype) -> FusedAttention:
    _require(type(block).__name__ == "Attention", f"attention of the class {type(block).__name__}")
    processor = type(block.processor).__name__
    _require(processor in _PROCESSORS, f"the attention processor {processor}")
    for option in ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim"):
        _require(getattr(block, option, None) is None, f"attention with {option}")
    _require(not block.is_cross_attention, "cross-attention")
    _require(block.scale_qk, "attention with scale_qk=False")
    qkv = _linear(block.to_q), _linear(block.to_k), _linear(block.to_v)
    _require(len({layer.out_features for layer in qkv}) == 1, "attention with kv_heads")
    parts = AttentionParts(
        norm=None if block.group_norm is None else _norm(block.group_norm),
        qkv=qkv,
        project=_linear(block.to_out[0]),
        heads=block.heads,
        new_order=True,
        residual=block.residual_connection,
        factor=1 / block.rescale_output_factor,
    )
    return FusedAttention(parts, dtype)


def _sampler(layer: Any, kind: str, dtype: torch.dtype) -> Any:
    """What halves or doubles the resolution: a residual block, or a layer of this kind with a convolution."""
    name = type(layer).__name__
    if name == "ResnetBlock2D":
        return _residual(layer, dtype)
    _require(name == kind and layer.use_conv and layer.norm is None, f"{name} in the place of {kind}")
    if kind == "Downsample2D":
        _require(layer.padding in (0, 1), f"downsample_padding={layer.padding}")
        conv = _conv(layer.conv, stride=2, padding=layer.padding)
        return FusedDownsample(conv, dtype, uneven=layer.padding == 0)
    _require(layer.name == "conv" and layer.interpolate, "Upsample2D that does not interpolate")
    return FusedUpsample(_conv(layer.conv), dtype)


def _conv(layer: Any, stride: int = 1, padding: int | None = None) -> Any:
    """The layer, if it is a plain convolution: the kernels take its shape for granted."""
    _require(type(layer) is nn.Conv2d, f"{type(layer).__name__} in the place of a convolution")
    k = layer.kernel_size[0]
    padding = k // 2 if padding is None else padding
    plain = (
        layer.kernel_size in ((1, 1), (3, 3))
        and layer.stride == (stride, stride)
        and layer.padding == (padding, padding)
        and layer.dilation == (1, 1)
        and (layer.groups, layer.padding_mode) == (1, "zeros")
    )
    _require(plain, f"the convolution {layer}")
    return layer


def _linear(layer: Any) -> Any:
    _require(type(layer) is nn.Linear, f"{type(layer).__name__} in the place of a linear layer")
    return layer


def _norm(layer: Any) -> Any:
    _require(type(layer) is nn.GroupNorm, f"{type(layer).__name__} in the place of a group norm")
    return layer


def _activation(layer: Any) -> None:
    name = type(layer).__name__
    _require(type(layer) is nn.SiLU, f"the activation {name}: act_fn must be 'silu' or 'swish'")


def _require(covered: bool, what: str) -> None:
    if not covered:
        raise FastdiffError(f"optimize does not cover {what}; the model is left as it was")
