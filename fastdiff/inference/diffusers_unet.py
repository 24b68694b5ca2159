"""diffusers' ``UNet2DModel`` on fused blocks.

The package itself is never imported here: a user with a model has imported it. Classes are recognised by their names,
and other properties are read from the layers. Anything that is not covered is refused before the model is changed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import FastdiffError
from fastdiff.inference.blocks import (
    AttentionParts,
    FusedAttention,
    FusedConv,
    FusedDownsample,
    FusedResBlock,
    FusedUpsample,
    ResidualParts,
)
from fastdiff.inference.checks import activation, convolution, linear, norm, require
from fastdiff.inference.trunk import FusedTrunk, Layers
from fastdiff.inference.watch import why_not_called, why_not_fused

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
    """Replacement of ``UNet2DModel.forward``."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        known: Any = unet2d_class(model)
        require(type(model).forward is known.forward, f"a forward of its own, as {type(model).__name__} has")
        self._output = sys.modules[known.__module__].UNet2DOutput
        super().__init__(model, "forward", dtype)

    def _make(self) -> Layers | str:
        model = self.model
        for block in (*model.down_blocks, model.mid_block, *model.up_blocks):
            if block is not None and (reason := why_not_called(block, type(block))):
                return f"{reason} of a {type(block).__name__}"
        self._factor = 2 ** sum(block.downsamplers is not None for block in model.down_blocks)
        first = self.place(model.conv_in, lambda layer, dtype: FusedConv(convolution(layer), dtype))
        return Layers(
            down=[[first], *(layers for block in model.down_blocks for layers in self._down(block))],
            middle=self._middle(model.mid_block),
            up=[layers for block in model.up_blocks for layers in self._up(block)],
            out=self._out(),
        )

    def _out(self) -> Any:
        model = self.model
        layers = model.conv_norm_out, model.conv_act, model.conv_out
        if reason := next(filter(None, map(why_not_fused, layers)), None):
            return self.as_it_is(*layers, reason=reason)
        activation(model.conv_act)
        return self.place(
            model.conv_out,
            lambda conv, dtype: FusedConv(convolution(conv), dtype, norm=norm(model.conv_norm_out)),
        )

    def __call__(
        self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """Same as ``UNet2DModel.forward``."""
        if not self.applies(sample):
            return self.plain(sample, timestep, class_labels, return_dict)
        if torch.compiler.is_compiling():
            from fastdiff.inference.compiled import outside_of_graphs

            return outside_of_graphs(self, sample, timestep, class_labels, return_dict)
        layers, model = self.layers(), self.model
        if layers is None:
            return self.plain(sample, timestep, class_labels, return_dict)
        self._check(sample)
        if model.config.center_input_sample:
            sample = 2 * sample - 1
        timesteps = _timesteps(timestep, len(sample))
        out = self.run(layers, sample, self._embedding(timesteps, class_labels))
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
        channels = self.model.config.in_channels
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

    def _down(self, block: Any) -> Iterable[list[Any]]:
        require(type(block).__name__ in _DOWN, f"the block type {type(block).__name__}")
        yield from self._pairs(block)
        for layer in block.downsamplers or ():
            yield [self._sampler(layer, "Downsample2D")]

    def _up(self, block: Any) -> list[list[Any]]:
        require(type(block).__name__ in _UP, f"the block type {type(block).__name__}")
        blocks = self._pairs(block)
        blocks[-1] += [self._sampler(layer, "Upsample2D") for layer in block.upsamplers or ()]
        return blocks

    def _pairs(self, block: Any) -> list[list[Any]]:
        """Residual blocks, each with its attention, if any."""
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        return [
            [self._residual(resnet), *([] if attention is None else [self.place(attention, _attention)])]
            for resnet, attention in zip(block.resnets, attentions, strict=True)
        ]

    def _middle(self, block: Any) -> list[Any]:
        if block is None:
            return []
        name = type(block).__name__
        require(name == "UNetMidBlock2D", f"the block type {name}")
        layers: list[Any] = [self._residual(block.resnets[0])]
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            layers += [] if attention is None else [self.place(attention, _attention)]
            layers.append(self._residual(resnet))
        return layers

    def _residual(self, block: nn.Module) -> Any:
        return self.place(block, _residual, embedded=True)

    def _sampler(self, layer: nn.Module, kind: str) -> Any:
        """The layer that halves or doubles the resolution: a residual block, or resampling with a convolution."""
        if type(layer).__name__ == "ResnetBlock2D":
            return self._residual(layer)
        return self.place(layer, functools.partial(_sampler, kind))


def _timesteps(timestep: Any, n: int) -> Tensor:
    """Timesteps [N] from a number, a tensor of one element, or [N]; a number is truncated, as in diffusers."""
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor([timestep], dtype=torch.long)
    return timestep.expand(n) if timestep.dim() == 0 else timestep * torch.ones(n, dtype=timestep.dtype)


def _residual(block: Any, dtype: torch.dtype) -> FusedResBlock:
    name = type(block).__name__
    require(name == "ResnetBlock2D", f"{name} (resnet_time_scale_shift)")
    style = block.time_embedding_norm
    require(style in ("default", "scale_shift"), f"resnet_time_scale_shift={style!r}")
    require(block.time_emb_proj is not None, "residual blocks without a time embedding (temb_channels=None)")
    require(not block.skip_time_act, "residual blocks with skip_time_act=True")
    activation(block.nonlinearity)
    for layer, kind in ((block.upsample, "Upsample2D"), (block.downsample, "Downsample2D")):
        plain = layer is None or (type(layer).__name__ == kind and not layer.use_conv and layer.norm is None)
        require(plain, "residual blocks that resample by a kernel")
    parts = ResidualParts(
        norm1=norm(block.norm1),
        conv1=convolution(block.conv1),
        projection=linear(block.time_emb_proj),
        norm2=norm(block.norm2),
        conv2=convolution(block.conv2),
        skip=None if block.conv_shortcut is None else convolution(block.conv_shortcut),
        scale_shift=style == "scale_shift",
        resample="up" if block.upsample is not None else "down" if block.downsample is not None else None,
        factor=1 / block.output_scale_factor,
    )
    return FusedResBlock(parts, dtype)


def _attention(block: Any, dtype: torch.dtype) -> FusedAttention:
    require(type(block).__name__ == "Attention", f"attention of the class {type(block).__name__}")
    processor = type(block.processor).__name__
    require(processor in _PROCESSORS, f"the attention processor {processor}")
    for option in ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim"):
        require(getattr(block, option, None) is None, f"attention with {option}")
    require(not block.is_cross_attention, "cross-attention")
    require(block.scale_qk, "attention with scale_qk=False")
    qkv = linear(block.to_q), linear(block.to_k), linear(block.to_v)
    require(len({layer.out_features for layer in qkv}) == 1, "attention with kv_heads")
    parts = AttentionParts(
        norm=None if block.group_norm is None else norm(block.group_norm),
        qkv=qkv,
        project=linear(block.to_out[0]),
        heads=block.heads,
        new_order=True,
        residual=block.residual_connection,
        factor=1 / block.rescale_output_factor,
    )
    return FusedAttention(parts, dtype)


def _sampler(kind: str, layer: Any, dtype: torch.dtype) -> FusedDownsample | FusedUpsample:
    name = type(layer).__name__
    require(name == kind and layer.use_conv and layer.norm is None, f"{name} in the place of {kind}")
    if kind == "Downsample2D":
        require(layer.padding in (0, 1), f"downsample_padding={layer.padding}")
        conv = convolution(layer.conv, stride=2, padding=layer.padding)
        return FusedDownsample(conv, dtype, uneven=layer.padding == 0)
    require(layer.name == "conv" and layer.interpolate, "Upsample2D that does not interpolate")
    return FusedUpsample(convolution(layer.conv), dtype)
