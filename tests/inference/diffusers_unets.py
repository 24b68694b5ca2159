"""Small UNet2DModels of diffusers, one for every option, and what to give them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BASE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
ATTENTION_FIRST = {
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
RESNET_BLOCKS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
DDPM = {  # as in the released CIFAR-10 model, but small
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "base": {},
    "ddpm": DDPM,
    "swish": {"act_fn": "swish"},
    "padding_0": {"downsample_padding": 0},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},  # the middle's attention has no norm
    "scale_shift_attention_norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "one_head": {"attention_head_dim": None},
    "heads_narrower_than_channels": {"attention_head_dim": 24},  # 2 x 24 of 64
    "attention_before_sampling": ATTENTION_FIRST,
    "attention_before_sampling_by_resnets": {
        **ATTENTION_FIRST,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "sampling_by_resnets": {**RESNET_BLOCKS, "resnet_time_scale_shift": "scale_shift"},
    "middle_scaled": {"mid_block_scale_factor": 1.7},
    "middle_without_attention": {"add_attention": False},
    "no_middle": {"mid_block_type": None},
    "centred": {"center_input_sample": True},
    "eps": {"norm_eps": 0.3},
    "odd_channels": {"block_out_channels": (24, 40), "attention_head_dim": 8},
    "deep": {
        "layers_per_block": 3,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "one_level": {
        "block_out_channels": (32,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "dropout": {"dropout": 0.5},
    "channels": {"in_channels": 1, "out_channels": 6},
    "time_width": {"time_embedding_dim": 48},
    "fourier": {"time_embedding_type": "fourier"},
    "learned_time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "classes": {"num_class_embeds": 7},
    "class_times": {"class_embed_type": "timestep"},
    "class_vectors": {"class_embed_type": "identity"},
}


def random_unet(name: str = "base", **options: Any) -> Any:
    """No parameter is zero or one, so that every one of them shows in the output."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{**BASE, **CONFIGS[name], **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.eval()


def inputs_of(model: Any, height: int = 16, width: int = 24) -> dict[str, Tensor]:
    torch.manual_seed(3)
    config = model.config
    given = {
        "sample": torch.randn(2, config.in_channels, height, width),
        "timestep": torch.tensor([3, 700]),
    }
    if config.num_class_embeds:
        given["class_labels"] = torch.tensor([0, 6])
    elif config.class_embed_type == "timestep":
        given["class_labels"] = torch.tensor([5, 60])
    elif config.class_embed_type == "identity":
        given["class_labels"] = torch.randn(2, 4 * config.block_out_channels[0])
    return given
