"""Conversion of ADM U-Nets to diffusers' ``UNet2DModel`` and back; an error names options without a counterpart.

Both networks have the same layers in the same order, so they are paired one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import FastdiffError
from fastdiff.models import UNet
from fastdiff.models.config import GROUPS, UNetConfig
from fastdiff.nn import AttentionBlock, ResBlock

_RESIDUAL = {  # ResBlock -> ResnetBlock2D
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def to_unet2d(model: UNet) -> Any:
    """A fastdiff (ADM) U-Net as ``diffusers.UNet2DModel``: the same outputs to rounding, in the same dtype.

    Raises:
        FastdiffError: the configuration has no counterpart there, by name (the released models for 512 pixels, for 128
            and the upsamplers are among these).
    """
    from diffusers import UNet2DModel

    theirs: Any = UNet2DModel(**_their_config(model.config))
    with torch.no_grad():
        for ours, other in _pairs(model, theirs):
            _copy(ours, other, back=False)
    return theirs.to(device=next(model.parameters()).device, dtype=model.dtype).train(model.training)


def from_unet2d(unet: Any) -> UNet:
    """A ``diffusers.UNet2DModel`` as a fastdiff (ADM) U-Net: the same outputs to rounding, in the same dtype.

    A network with twice as many channels out as in is taken to return variances as well (``learn_sigma``).

    Raises:
        FastdiffError: an option that ADM does not have, by name.
    """
    model = UNet(_our_config(unet.config))
    with torch.no_grad():
        for ours, other in _pairs(model, unet):
            _copy(ours, other, back=True)
    first = next(unet.parameters())
    return model.to(device=first.device, dtype=first.dtype).train(unet.training)


def _their_config(config: UNetConfig) -> dict[str, Any]:
    _require(config.low_res is None, "super-resolution (low_res)")
    _require(not config.rescale_residual, "rescale_residual")
    _require(config.resblock_updown or config.conv_resample, "conv_resample=False")
    _require(len(set(config.blocks_per_level)) == 1, f"num_res_blocks={config.num_res_blocks}")
    widths = config.level_channels
    _require(
        widths[0] == config.model_channels,
        f"a first level of {widths[0]} channels and a time embedding made of {config.model_channels}",
    )
    attends = [config.image_size >> level in config.attention_resolutions for level in range(len(widths))]
    sizes = {widths[-1] // config.heads(widths[-1])}
    for width in (w for w, yes in zip(widths, attends, strict=True) if yes):
        sizes |= {width // config.heads(width), width // config.heads(width, up=True)}
    _require(len(sizes) == 1, f"heads of {' and '.join(map(str, sorted(sizes)))} channels")
    plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if config.resblock_updown
        else ("DownBlock2D", "UpBlock2D")
    )
    resample = "resnet" if config.resblock_updown else "conv"
    null = 1 if config.null_label else 0
    return {
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels * (2 if config.learn_sigma else 1),
        "block_out_channels": widths,
        "layers_per_block": config.blocks_per_level[0],
        "down_block_types": tuple("AttnDownBlock2D" if yes else plain[0] for yes in attends),
        "up_block_types": tuple("AttnUpBlock2D" if yes else plain[1] for yes in reversed(attends)),
        "downsample_type": resample,
        "upsample_type": resample,
        "attention_head_dim": sizes.pop(),
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
        "num_class_embeds": None if config.num_classes is None else config.num_classes + null,
        "dropout": config.dropout,
    }


def _our_config(config: Any) -> UNetConfig:
    expected = {
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "freq_shift": (0,),
        "flip_sin_to_cos": (True,),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "act_fn": ("silu", "swish"),
        "norm_num_groups": (GROUPS,),
        "norm_eps": (1e-5,),
        "add_attention": (True,),
        "class_embed_type": (None,),
        "time_embedding_dim": (None, 4 * config.block_out_channels[0]),
    }
    for name, accepted in expected.items():
        _require(config[name] in accepted, f"{name}={config[name]!r}", "ADM U-Nets")
    shift = config.resnet_time_scale_shift
    if shift == "scale_shift" or config.attn_norm_num_groups is not None:
        groups = config.attn_norm_num_groups
        _require(groups == GROUPS, f"attn_norm_num_groups={groups}", "ADM U-Nets")
    updown = _resampled_by_residuals(config)
    down, up = config.down_block_types, config.up_block_types
    attends = [kind.startswith("Attn") for kind in down]
    _require(attends == [kind.startswith("Attn") for kind in reversed(up)], f"{down} with {up}", "ADM U-Nets")
    if not updown:
        _require(
            config.downsample_padding == 1, f"downsample_padding={config.downsample_padding}", "ADM U-Nets"
        )
    widths, size = config.block_out_channels, config.sample_size
    _require(isinstance(size, int), f"sample_size={size!r}", "ADM U-Nets")
    learn_sigma = config.out_channels == 2 * config.in_channels
    return UNetConfig(
        image_size=size,
        in_channels=config.in_channels,
        out_channels=config.in_channels if learn_sigma else config.out_channels,
        learn_sigma=learn_sigma,
        model_channels=widths[0],
        channel_mult=tuple(w / widths[0] for w in widths),
        num_res_blocks=config.layers_per_block,
        attention_resolutions=tuple(size >> level for level, yes in enumerate(attends) if yes),
        use_scale_shift_norm=shift == "scale_shift",
        resblock_updown=updown,
        use_new_attention_order=True,
        num_classes=config.num_class_embeds,
        dropout=config.dropout,
        num_head_channels=config.attention_head_dim or -1,  # none: one head
    )


def _resampled_by_residuals(config: Any) -> bool:
    """True if every change of resolution is in a residual block, False if none is."""
    kinds = set()
    for blocks, attention, default in (
        (config.down_block_types[:-1], "AttnDownBlock2D", config.downsample_type),
        (config.up_block_types[:-1], "AttnUpBlock2D", config.upsample_type),
    ):
        for kind in blocks:
            if kind == attention:
                kinds.add(default)
            else:
                kinds.add("resnet" if kind.startswith("Resnet") else "conv")
    _require(kinds <= {"resnet", "conv"}, f"resampling by {sorted(map(str, kinds))}", "ADM U-Nets")
    _require(
        len(kinds) <= 1, "resampling by convolutions and by residual blocks in one network", "ADM U-Nets"
    )
    return kinds == {"resnet"}


def _pairs(model: UNet, unet: Any) -> Iterator[tuple[Any, Any]]:
    yield model.time_embed[0], unet.time_embedding.linear_1
    yield model.time_embed[2], unet.time_embedding.linear_2
    if model.config.num_classes is not None:
        yield model.label_emb, unet.class_embedding
    blocks: list[Any] = [*model.input_blocks, model.middle_block, *model.output_blocks]
    ours = [layer for block in blocks for layer in block]
    yield from zip(ours, _their_layers(unet), strict=True)
    yield model.out[0], unet.conv_norm_out
    yield model.out[2], unet.conv_out


def _their_layers(unet: Any) -> Iterator[nn.Module]:
    yield unet.conv_in
    for block in unet.down_blocks:
        yield from _alternating(block)
        yield from block.downsamplers or ()
    yield unet.mid_block.resnets[0]
    yield unet.mid_block.attentions[0]
    yield unet.mid_block.resnets[1]
    for block in unet.up_blocks:
        yield from _alternating(block)
        yield from block.upsamplers or ()


def _alternating(block: Any) -> Iterator[nn.Module]:
    attentions = getattr(block, "attentions", None)
    for i, resnet in enumerate(block.resnets):
        yield resnet
        if attentions:
            yield attentions[i]


def _copy(ours: Any, theirs: Any, *, back: bool) -> None:
    """One layer's parameters, there or back."""
    if isinstance(ours, ResBlock):
        for mine, other in _RESIDUAL.items():
            layer = ours.get_submodule(mine)
            if not isinstance(layer, nn.Identity):
                _assign(layer, theirs.get_submodule(other), back=back)
    elif isinstance(ours, AttentionBlock):
        _assign(ours.norm, theirs.group_norm, back=back)
        _assign(ours.proj_out, theirs.to_out[0], back=back)
        _copy_qkv(ours, (theirs.to_q, theirs.to_k, theirs.to_v), back=back)
    else:  # a convolution, a linear layer, an embedding, a norm, or a layer around one convolution
        mine = next(m for m in ours.modules() if hasattr(m, "weight"))
        other = next(m for m in theirs.modules() if hasattr(m, "weight"))
        _assign(mine, other, back=back)


def _assign(ours: Any, theirs: Any, *, back: bool) -> None:
    source, target = (theirs, ours) if back else (ours, theirs)
    for name, parameter in target.named_parameters(recurse=False):
        parameter.copy_(getattr(source, name).reshape(parameter.shape))


def _copy_qkv(ours: AttentionBlock, theirs: tuple[Any, Any, Any], *, back: bool) -> None:
    """The rows of qkv are [3, H, D] in the new order and [H, 3, D] in the legacy one; theirs are H, D each."""

    def rows(t: Tensor) -> Tensor:
        """As [3, H, D, ...], a view."""
        if ours.new_order:
            return t.unflatten(0, (3, ours.num_heads, -1))
        return t.unflatten(0, (ours.num_heads, 3, -1)).transpose(0, 1)

    for name in ("weight", "bias"):
        for part, layer in zip(rows(getattr(ours.qkv, name).data), theirs, strict=True):
            other = getattr(layer, name).data.reshape(part.shape)
            part.copy_(other) if back else getattr(layer, name).data.copy_(
                part.reshape(getattr(layer, name).shape)
            )


def _require(covered: bool, what: str, where: str = "UNet2DModel") -> None:
    if not covered:
        raise FastdiffError(f"{where} cannot represent {what}; nothing was converted")
