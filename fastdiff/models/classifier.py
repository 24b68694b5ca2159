"""ADM's noisy-image classifier: the U-Net's way down and a head that pools it into logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.choices import Recompute
from fastdiff.errors import FastdiffError
from fastdiff.models import trunk
from fastdiff.models.config import ClassifierConfig
from fastdiff.nn import GroupNormSiLU, split_heads, zero_module
from fastdiff.ops import attention

_HIDDEN = 2048  # width of the spatial heads


class AttentionPool(nn.Module):
    """[N, C, H, W] -> [N, K]: the mean token attends to itself and to every position.

    Positions have learned embeddings, so H and W are fixed. qkv channels are [3, H, D] in every checkpoint.
    Source: the pooling of CLIP, Radford et al. 2021, section 2.4.
    """

    def __init__(self, size: int, channels: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        self.size, self.num_heads = size, num_heads
        embedding = torch.randn(channels, size**2 + 1) / channels**0.5
        self.positional_embedding = nn.Parameter(embedding)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        if height * width != self.size**2:
            raise FastdiffError(
                f"this classifier pools {self.size}x{self.size} features, got {height}x{width}; "
                "its images must have the size it was trained on"
            )
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(dim=-1, keepdim=True), tokens], dim=-1)  # [N, C, T], T = H W + 1
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        qkv = self.qkv_proj(tokens).transpose(1, 2)  # [N, T, 3C]
        q, k, v = split_heads(qkv, self.num_heads, new_order=True)
        pooled = attention(q[:, :, :1], k, v)  # [N, heads, 1, D]: only the mean token's answer is used
        return self.c_proj(pooled.reshape(n, c, 1)).flatten(1)


class Classifier(nn.Module):
    """log p(y | x_t) up to a constant, for classifier guidance: x_t, t -> logits.

    Parameter names and shapes are guided-diffusion's ``EncoderUNetModel``'s.

    Args:
        config: see :class:`ClassifierConfig`.

    Source: Dhariwal & Nichol 2021, section 4 and table 12.
    """

    diffusion: Any = None  # the DiffusionConfig it was trained with
    class_names: tuple[str, ...] = ()

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "full" if config.use_checkpoint else "none"  # trunk.run_block
        self.time_embed = trunk.time_embed(config)
        self.input_blocks, widths = trunk.down_path(config, config.in_channels)
        self.middle_block = trunk.middle(config)
        self.out = _head(config, sum(widths) + widths[-1])

    @property
    def dtype(self) -> torch.dtype:
        """Data type in which the convolutions of the trunk compute."""
        return trunk.compute_dtype(self.middle_block)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """x [N, C, H, W], timesteps [N] -> logits [N, num_outputs] in x's dtype.

        Raises:
            FastdiffError: shapes that do not fit.
        """
        emb = trunk.embed_time(self.config, self.time_embed, timesteps)
        trunk.check_image(self.config, x, self.config.in_channels, emb)
        spatial, head = self.config.pool.startswith("spatial"), next(self.out.parameters()).dtype
        h, means = x.type(self.dtype), []
        for block in (*self.input_blocks, self.middle_block):
            h = trunk.run_block(block, h, emb, recompute=self.recompute)
            if spatial:
                means.append(h.type(head).mean(dim=(2, 3)))
        return self.out(torch.cat(means, dim=-1) if spatial else h.type(head)).type(x.dtype)

    def train(self, mode: bool = True) -> Classifier:
        """As for every module; warns if ``mode`` is True and all weights are frozen."""
        if mode:
            trunk.warn_if_frozen(self)
        return super().train(mode)

    def half_trunk(self, dtype: torch.dtype = torch.float16) -> Classifier:
        """Cast the trunk's convolutions to ``dtype``, as guided-diffusion's ``convert_to_fp16`` does."""
        trunk.halve_convolutions([*self.input_blocks, self.middle_block], dtype)
        return self


def _head(config: ClassifierConfig, features: int) -> nn.Sequential:
    """Norms contain the activation; Identity keeps its place in guided-diffusion's numbering.

    Args:
        features: channels of all blocks' outputs together, which the spatial heads see.
    """
    channels = config.level_channels[-1]
    if config.pool == "attention":
        size = config.image_size >> (len(config.channel_mult) - 1)
        pool = AttentionPool(size, channels, config.heads(channels), config.num_outputs)
        return nn.Sequential(GroupNormSiLU(channels), nn.Identity(), pool)
    if config.pool == "adaptive":
        last = zero_module(nn.Conv2d(channels, config.num_outputs, 1))
        return nn.Sequential(
            GroupNormSiLU(channels), nn.Identity(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten()
        )
    if config.pool == "spatial":
        return nn.Sequential(nn.Linear(features, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, config.num_outputs))
    return nn.Sequential(
        nn.Linear(features, _HIDDEN),
        GroupNormSiLU(_HIDDEN),
        nn.Identity(),
        nn.Linear(_HIDDEN, config.num_outputs),
    )
