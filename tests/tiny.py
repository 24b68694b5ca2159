"""Networks that run in milliseconds. A test changes what it is about: ``replace(tiny.UNET, num_classes=4)``."""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.models import ClassifierConfig, ModelConfig, UNetConfig, build_model

# Two levels of 8 and 4 pixels, attention on the lower one.
UNET = UNetConfig(
    image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)
CLASSIFIER = ClassifierConfig(
    image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)
# One level of convolutions on gray images, with three classes.
GRAY = UNetConfig(
    image_size=8,
    in_channels=1,
    out_channels=1,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    num_classes=3,
)
GRAY_CLASSIFIER = ClassifierConfig(
    image_size=8,
    in_channels=1,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    num_outputs=5,
)


def build(config: ModelConfig, seed: int = 0) -> Any:
    """The network with random weights throughout: none are zero, so that every one matters."""
    torch.manual_seed(seed)
    model = build_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
