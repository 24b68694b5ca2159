"""ADM U-Nets as UNet2DModel and back: the same outputs, or a sentence saying what cannot be represented."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from fastdiff.errors import FastdiffError
from fastdiff.interop.diffusers import from_unet2d, to_unet2d
from fastdiff.models import UNet
from fastdiff.models.config import UNetConfig
from fastdiff.zoo import PRESETS

BASE: dict[str, Any] = {
    "image_size": 16,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "num_head_channels": 16,
}
OURS = {
    "base": {},
    "legacy-order-learned": {"learn_sigma": True},
    "new-order": {"use_new_attention_order": True},
    "classes": {"num_classes": 7},
    "null-label": {"num_classes": 7, "null_label": True},
    "convolutions": {"resblock_updown": False},
    "additive": {"use_scale_shift_norm": False},
    "attends-everywhere": {"attention_resolutions": (16, 8), "num_res_blocks": 2},
    "attends-in-the-middle": {"attention_resolutions": ()},
    "three-levels": {"channel_mult": (1, 2, 3), "image_size": 32, "attention_resolutions": (16, 8)},
    "one-width-four-heads": {"num_head_channels": -1, "num_heads": 4},
}
THEIRS = {
    "ddpm-like": {"downsample_padding": 1, "attention_head_dim": None},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
    "resnets": {"downsample_type": "resnet", "upsample_type": "resnet"}
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "classes": {"num_class_embeds": 5},
}


def _random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.eval()


def _call(model: Any, size: int, classes: int | None) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 3, size, size, generator=g), torch.tensor([3, 700])
    labels = None if classes is None else torch.tensor([0, classes - 1])
    with torch.no_grad():
        if isinstance(model, UNet):
            return model(x, t, labels)
        return model(x, t, class_labels=labels).sample


@pytest.mark.parametrize("name", OURS)
def test_there_and_back(name: str) -> None:
    config = UNetConfig(**BASE | OURS[name])
    model = _random(UNet(config))
    classes = None if config.num_classes is None else config.num_classes + config.null_label
    truth = _call(model, config.image_size, classes)
    theirs = to_unet2d(model)
    torch.testing.assert_close(_call(theirs, config.image_size, classes), truth, rtol=1e-4, atol=1e-4)
    again = from_unet2d(theirs)
    torch.testing.assert_close(_call(again, config.image_size, classes), truth, rtol=1e-4, atol=1e-4)
    kept = (
        "image_size",
        "model_channels",
        "channel_mult",
        "learn_sigma",
        "resblock_updown",
        "use_scale_shift_norm",
    )
    assert [getattr(again.config, k) for k in kept] == [getattr(config, k) for k in kept]
    if config.use_new_attention_order:
        state = model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("name", THEIRS)
def test_from_diffusers(name: str) -> None:
    options = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    unet = _random(diffusers.UNet2DModel(**options | THEIRS[name]))
    classes = unet.config.num_class_embeds
    torch.testing.assert_close(
        _call(from_unet2d(unet), 16, classes), _call(unet, 16, classes), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channel_mult": (2, 4), "num_head_channels": 32}, "first level of 64"),
        ({"num_head_channels": -1, "num_heads": 4, "attention_resolutions": (16, 8)}, "heads of 8 and 16"),
        ({"rescale_residual": True}, "rescale_residual"),
        ({"num_res_blocks": (1, 2)}, "num_res_blocks"),
        ({"resblock_updown": False, "conv_resample": False}, "conv_resample"),
    ],
)
def test_what_diffusers_does_not_have_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(FastdiffError, match=said):
        to_unet2d(UNet(UNetConfig(**BASE | options)))


@pytest.mark.parametrize(
    "options",
    [
        {"freq_shift": 1},
        {"norm_eps": 1e-6},
        {"act_fn": "mish"},
        {"downsample_padding": 0},
        {"mid_block_scale_factor": 2},
    ],
    ids=str,
)
def test_what_adm_does_not_have_is_named(options: dict[str, Any]) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    )
    with pytest.raises(FastdiffError, match=next(iter(options))):
        from_unet2d(unet)


@pytest.mark.parametrize("name", ["adm-64", "adm-256", "adm-256-uncond"])
def test_released_models_have_a_counterpart(name: str) -> None:
    """Without weights: on the meta device, key by key."""
    with torch.device("meta"):
        model = UNet(PRESETS[name].model)
        theirs = to_unet2d(model)
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize("name", ["adm-512", "adm-128"])
def test_released_models_that_have_none(name: str) -> None:
    with torch.device("meta"), pytest.raises(FastdiffError, match="cannot represent"):
        to_unet2d(UNet(PRESETS[name].model))
