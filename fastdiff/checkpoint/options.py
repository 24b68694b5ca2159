"""Keyword arguments of ``load``, and the names that it knows, for type checkers; ``tests/typing`` compares them."""

from __future__ import annotations

import os
from typing import Literal, TypedDict

import torch

from fastdiff.diffusion.config import DiffusionConfig

ClassifierName = Literal[
    "fashion-mnist-classifier",
    "adm-64-classifier",
    "adm-128-classifier",
    "adm-256-classifier",
    "adm-512-classifier",
]
UNetName = Literal[
    "fashion-mnist",
    "fashion-mnist-few",
    "emoji",
    "emoji-upsampler",
    "adm-64",
    "adm-128",
    "adm-256",
    "adm-256-uncond",
    "adm-512",
    "adm-512-uncond",
    "adm-64-256",
    "adm-128-512",
    "adm-lsun-bedroom",
    "adm-lsun-cat",
    "adm-lsun-horse",
    "adm-lsun-horse-nodropout",
    "edm-imagenet-64",
    "cd-imagenet-64-l2",
    "cd-imagenet-64-lpips",
    "ct-imagenet-64",
    "edm-bedroom-256",
    "cd-bedroom-256-l2",
    "cd-bedroom-256-lpips",
    "ct-bedroom-256",
    "edm-cat-256",
    "cd-cat-256-l2",
    "cd-cat-256-lpips",
    "ct-cat-256",
    "ddpm-cifar10",
    "iddpm-cifar10",
    "iddpm-imagenet-64",
]


class LoadOptions(TypedDict, total=False):
    """:func:`~fastdiff.checkpoint.load.load`'s own arguments, then the fields of the models' configurations."""

    preset: str | None
    weights: str | None
    diffusion: DiffusionConfig | None
    device: torch.device | str
    dtype: torch.dtype
    trainable: bool
    base: str | os.PathLike[str] | None

    image_size: int
    in_channels: int
    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int | tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    num_heads: int
    num_head_channels: int
    num_heads_upsample: int
    use_scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool
    use_new_attention_order: bool
    dropout: float
    rescale_residual: bool
    use_checkpoint: bool
    out_channels: int
    learn_sigma: bool
    num_classes: int | None
    null_label: bool
    low_res: Literal["bilinear", "bicubic"] | None
    num_outputs: int
    pool: Literal["adaptive", "attention", "spatial", "spatial_v2"]
