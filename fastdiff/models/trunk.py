"""The blocks of U-Net and classifier, under guided-diffusion's parameter names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastdiff.choices import Recompute
from fastdiff.errors import FastdiffError
from fastdiff.models.config import RECOMPUTE, TrunkConfig
from fastdiff.nn import (
    AttentionBlock,
    Conv2d,
    Downsample,
    ResBlock,
    Upsample,
    recomputing,
    timestep_embedding,
)


class Block(nn.Sequential):
    """Layers run one after another; residual blocks also get the embedding. Keys: 0, 1, 2."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def warn_if_frozen(model: nn.Module) -> None:
    """Warn that a network that is put in train mode has no weight that would learn."""
    if not any(p.requires_grad for p in model.parameters()):
        warnings.warn(
            "the weights of this model are frozen, as fastdiff.load returns them, and will not be trained; "
            "load it with trainable=True, or call model.requires_grad_()",
            stacklevel=3,
        )


def run_block(block: nn.Module, *args: Tensor, recompute: Recompute) -> Tensor:
    """The block's output.

    recompute: "none" keeps all activations for the backward; "selective" recomputes norms, resampling and dropout
    (docs/training_memory.md); "full" keeps the arguments only and runs the whole block again.
    """
    if recompute not in RECOMPUTE:
        raise FastdiffError(f"recompute must be one of {', '.join(RECOMPUTE)}, got {recompute!r}")
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*args)
    if recompute == "full":
        return checkpoint(block, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return recomputing(block, *args)


def time_embed(config: TrunkConfig) -> nn.Sequential:
    """[N, model_channels] -> [N, E]."""
    e = config.embed_channels
    return nn.Sequential(nn.Linear(config.model_channels, e), nn.SiLU(), nn.Linear(e, e))


def embed_time(config: TrunkConfig, layers: nn.Sequential, timesteps: Tensor) -> Tensor:
    """timesteps [N] -> [N, E] in the layers' dtype."""
    if not isinstance(timesteps, Tensor) or timesteps.dim() != 1:
        raise FastdiffError(
            f"timesteps must be a tensor of shape [N], one for each image, got {given(timesteps)}"
        )
    if timesteps.is_complex() or timesteps.dtype == torch.bool:
        raise FastdiffError(f"timesteps must be whole or fractional numbers, got {timesteps.dtype}")
    waves = timestep_embedding(timesteps, config.model_channels)
    return layers(waves.to(next(layers.parameters()).dtype))


def given(value: object) -> str:
    """An argument as error messages describe it."""
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def check_image(config: TrunkConfig, x: Tensor, channels: int, emb: Tensor) -> None:
    """Raise unless x is [N, channels, H, W], of a height and width that the network can halve, and emb [N, E]."""
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != channels:
        raise FastdiffError(f"x must be a tensor of shape [N, {channels}, H, W], got {given(x)}")
    if not x.is_floating_point():
        raise FastdiffError(f"x must be floating-point, pixels scaled to [-1, 1], got {x.dtype}")
    n = x.shape[0]  # and not len(x), which would fix the number of images of an exported graph
    if emb.shape[0] != n:
        raise FastdiffError(f"x holds {n} images, but timesteps {emb.shape[0]}; give one for each image")
    if emb.shape[1:] != (config.embed_channels,):
        raise FastdiffError(f"the embedding must have shape [{n}, {config.embed_channels}], got {given(emb)}")
    factor = 2 ** (len(config.channel_mult) - 1)
    if x.shape[2] % factor or x.shape[3] % factor:
        raise FastdiffError(
            f"image height and width must be multiples of {factor} for this network to halve,"
            f" got {x.shape[2]}x{x.shape[3]}"
        )


def res_block(config: TrunkConfig, channels: int, out_channels: int, resample=None) -> ResBlock:
    return ResBlock(
        channels,
        config.embed_channels,
        out_channels,
        dropout=config.dropout,
        scale_shift_norm=config.use_scale_shift_norm,
        resample=resample,
        rescale=config.rescale_residual,
    )


def attention_block(config: TrunkConfig, channels: int, *, up: bool = False) -> AttentionBlock:
    return AttentionBlock(
        channels,
        config.heads(channels, up=up),
        new_order=config.use_new_attention_order,
        rescale=config.rescale_residual,
    )


def down_path(config: TrunkConfig, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
    """The encoder (way down), and the widths of its outputs, which are the decoder's skip connections."""
    channels = config.level_channels[0]
    blocks = [Block(Conv2d(in_channels, channels))]
    widths = [channels]
    size = config.image_size
    for level, out_channels in enumerate(config.level_channels):
        for _ in range(config.blocks_per_level[level]):
            layers: list[nn.Module] = [res_block(config, channels, out_channels)]
            channels = out_channels
            if size in config.attention_resolutions:
                layers.append(attention_block(config, channels))
            blocks.append(Block(*layers))
            widths.append(channels)
        if level < len(config.level_channels) - 1:
            down = (
                res_block(config, channels, channels, "down")
                if config.resblock_updown
                else Downsample(channels, conv=config.conv_resample)
            )
            blocks.append(Block(down))
            widths.append(channels)
            size //= 2
    return nn.ModuleList(blocks), widths


def middle(config: TrunkConfig) -> Block:
    channels = config.level_channels[-1]
    return Block(
        res_block(config, channels, channels),
        attention_block(config, channels),
        res_block(config, channels, channels),
    )


def compute_dtype(block: Block) -> torch.dtype:
    """Data type in which the block's convolutions compute."""
    return next(m.weight.dtype for m in block.modules() if isinstance(m, nn.Conv2d))


def up_path(config: TrunkConfig, skips: list[int]) -> nn.ModuleList:
    """The decoder (way up): one block more than down at each level, each with one skip connection."""
    return nn.ModuleList(_up_blocks(config, list(skips)))


def _up_blocks(config: TrunkConfig, skips: list[int]) -> Iterator[Block]:
    channels = config.level_channels[-1]
    for level in reversed(range(len(config.level_channels))):
        size = config.image_size >> level
        out_channels = config.level_channels[level]
        for i in range(config.blocks_per_level[level] + 1):
            layers: list[nn.Module] = [res_block(config, channels + skips.pop(), out_channels)]
            channels = out_channels
            if size in config.attention_resolutions:
                layers.append(attention_block(config, channels, up=True))
            if level and i == config.blocks_per_level[level]:
                layers.append(
                    res_block(config, channels, channels, "up")
                    if config.resblock_updown
                    else Upsample(channels, conv=config.conv_resample)
                )
            yield Block(*layers)


def halve_convolutions(blocks: list[nn.Module], dtype: torch.dtype) -> None:
    """Cast the weights of the convolutions inside ``blocks``, and nothing else."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                module.to(dtype)
