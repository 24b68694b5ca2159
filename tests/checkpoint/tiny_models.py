"""Networks small enough to be written a hundred times."""

from __future__ import annotations

import torch

from fastdiff.models import ClassifierConfig, UNetConfig, build_model

TINY = UNetConfig(
    image_size=8,
    in_channels=1,
    out_channels=1,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_classes=3,
)
TINY_CLASSIFIER = ClassifierConfig(
    image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, num_outputs=3
)


def build(config, seed: int = 0):
    """The network with random weights throughout: none are zero, so that every one matters."""
    torch.manual_seed(seed)
    model = build_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
