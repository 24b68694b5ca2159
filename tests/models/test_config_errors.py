"""What a user may get wrong in configurations and calls, and the sentence that answers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdiff.errors import FastdiffError
from fastdiff.models import ClassifierConfig, SuperResUNet, UNet, UNetConfig, build_model

UNET = UNetConfig(
    image_size=16, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,)
)
LABELLED = replace(UNET, num_classes=10)
SMALL = replace(UNET, low_res="bilinear")
CLASSIFIER = ClassifierConfig(image_size=16, model_channels=32, channel_mult=(1, 2), num_res_blocks=1)

WHOLE = "must be a whole number of at least 1"
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"image_size": 0}, f"image_size {WHOLE}, got 0"),
    ({"image_size": 16.0}, f"image_size {WHOLE}, got 16.0"),
    ({"image_size": "16"}, f"image_size {WHOLE}, got '16'"),
    ({"image_size": 15}, "image_size 15 cannot be halved 1 times"),
    (
        {"image_size": 28, "channel_mult": (1, 2, 2, 2)},
        "channel_mult (1, 2, 2, 2) asks for; use a multiple of 8",
    ),
    ({"in_channels": -3}, f"in_channels {WHOLE}, got -3"),
    ({"out_channels": 0}, f"out_channels {WHOLE}, got 0"),
    ({"model_channels": True}, f"model_channels {WHOLE}, got True"),
    (
        {"model_channels": 48},
        "48 channels (model_channels 48 x channel_mult (1, 2)) are not divisible by the norm's",
    ),
    ({"channel_mult": (1, 1.7)}, "54 channels (model_channels 32 x channel_mult (1, 1.7)) are not divisible"),
    ({"channel_mult": (0.01, 1)}, "0 channels (model_channels 32"),
    ({"channel_mult": ()}, "channel_mult must name at least one level"),
    ({"channel_mult": (1, 0)}, "channel_mult must be positive numbers, one for each level"),
    ({"channel_mult": (1, -2)}, "for example (1, 2, 4), got (1, -2)"),
    (
        {"channel_mult": "1,2,4"},
        "channel_mult must be positive numbers, one for each level, for example (1, 2, 4)",
    ),
    ({"channel_mult": 2}, "(1, 2, 4), got 2"),
    ({"channel_mult": ("1", "2")}, "got ('1', '2')"),
    ({"num_res_blocks": 0}, "num_res_blocks 0 must be positive"),
    ({"num_res_blocks": (1, 2, 3)}, "one number or one for each of the 2 levels"),
    (
        {"num_res_blocks": (1, 0)},
        "num_res_blocks must be a whole number of at least 1, or one for each level",
    ),
    ({"num_res_blocks": "2"}, "or one for each level, got '2'"),
    ({"num_res_blocks": 2.0}, "or one for each level, got 2.0"),
    (
        {"attention_resolutions": 8},
        "attention_resolutions must be sizes in pixels, for example (32, 16, 8), or ()",
    ),
    ({"attention_resolutions": "32,16,8"}, "got '32,16,8'"),
    ({"attention_resolutions": (8, 0)}, "got (8, 0)"),
    ({"attention_resolutions": (8.0,)}, "got (8.0,)"),
    ({"num_res_blocks": True}, "got True"),
    ({"learn_sigma": "False"}, "learn_sigma must be True or False, got 'False'"),
    ({"resblock_updown": 1}, "resblock_updown must be True or False, got 1"),
    ({"num_heads": 0}, f"num_heads {WHOLE}, got 0"),
    ({"num_heads": 3}, "num_heads 3 does not divide 64 channels"),
    ({"num_heads": 3, "attention_resolutions": ()}, "num_heads 3 does not divide 64 channels"),
    ({"num_head_channels": 0}, f"num_head_channels {WHOLE}, or -1, got 0"),
    ({"num_head_channels": 48}, "num_head_channels 48 does not divide 64 channels"),
    (
        {"num_head_channels": 64, "attention_resolutions": (16,)},
        "num_head_channels 64 does not divide 32 channels",
    ),
    ({"num_heads_upsample": -2}, f"num_heads_upsample {WHOLE}, or -1, got -2"),
    ({"num_heads_upsample": 5}, "num_heads_upsample 5 does not divide 64 channels"),
    ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ({"dropout": -0.1}, "got -0.1"),
    ({"dropout": float("nan")}, "got nan"),
    ({"dropout": "0.1"}, "got '0.1'"),
    ({"num_classes": 0}, f"num_classes {WHOLE}, or None, got 0"),
    ({"num_classes": "10"}, "or None, got '10'"),
    ({"null_label": True}, "null_label needs num_classes"),
    ({"low_res": "nearest"}, "low_res must be 'bilinear', 'bicubic' or None, got 'nearest'"),
    ({"low_res": True}, "got True"),
]


def _says(call, fragment: str) -> None:
    with pytest.raises(FastdiffError, match=re.escape(fragment)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "fragment"), CONFIGS, ids=[str(options) for options, _ in CONFIGS])
def test_configurations(options: dict[str, Any], fragment: str) -> None:
    _says(lambda: replace(UNET, **options), fragment)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"num_outputs": 0}, f"num_outputs {WHOLE}, got 0"),
        ({"pool": "mean"}, "pool must be 'adaptive', 'attention', 'spatial' or 'spatial_v2', got 'mean'"),
        ({"image_size": 17}, "image_size 17 cannot be halved"),
    ],
    ids=str,
)
def test_classifier_configurations(options: dict[str, Any], fragment: str) -> None:
    _says(lambda: replace(CLASSIFIER, **options), fragment)


def test_lists_are_taken_as_tuples() -> None:
    """JSON knows no tuples; equal configurations stay equal."""
    given = UNetConfig(
        image_size=16,
        model_channels=32,
        channel_mult=[1, 2],  # pyright: ignore[reportArgumentType]
        num_res_blocks=[1, 1],  # pyright: ignore[reportArgumentType]
        attention_resolutions=[8],  # pyright: ignore[reportArgumentType]
    )
    assert given == replace(UNET, num_res_blocks=(1, 1))
    assert hash(given) == hash(replace(UNET, num_res_blocks=(1, 1)))


@pytest.mark.parametrize("size", [8, 16, 32, 64, 512])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_usual_attention_flag_fits_any_model(size: int, levels: int) -> None:
    """Sizes that no level has are passed over: "32,16,8" means attention wherever a level is that small."""
    config = replace(
        UNET, image_size=size, channel_mult=(1,) * levels, attention_resolutions=(32, 16, 8), num_heads=1
    )
    with torch.device("meta"):
        model = build_model(config)
    expected = sum(size >> level in (32, 16, 8) for level in range(levels))
    assert sum(name.endswith("qkv.weight") for name in model.input_blocks.state_dict()) == expected


def test_heads_matter_only_where_attention_stands() -> None:
    """3 heads do not divide level 0's 32 channels, but nothing attends there."""
    config = replace(UNET, channel_mult=(1, 3), num_heads=3)
    assert config.heads(96) == 3
    below = replace(UNET, attention_resolutions=(), num_heads_upsample=3)  # the way up has no attention
    assert below.heads(64) == UNET.num_heads


X, T = torch.zeros(2, 3, 16, 16), torch.tensor([1, 2])
Y, LOW = torch.tensor([0, 9]), torch.zeros(2, 3, 8, 8)
CALLS: list[tuple[str, Any, tuple, str]] = [
    ("two_channels", UNET, (X[:, :2], T), "x must be a tensor of shape [N, 3, H, W], got [2, 2, 16, 16]"),
    ("one_image", UNET, (X[0], T), "got [3, 16, 16]"),
    ("channels_behind", UNET, (X.permute(0, 2, 3, 1), T), "[N, 3, H, W], got [2, 16, 16, 3]"),
    ("no_tensor", UNET, (None, T), "got NoneType"),
    (
        "bytes",
        UNET,
        (X.to(torch.uint8), T),
        "x must be floating-point, pixels scaled to [-1, 1], got torch.uint8",
    ),
    ("odd_size", UNET, (X[..., :15], T), "must be multiples of 2 for this network to halve, got 16x15"),
    ("t_scalar", UNET, (X, T[0]), "timesteps must be a tensor of shape [N], one for each image, got []"),
    ("t_mask", UNET, (X, T > 1), "timesteps must be whole or fractional numbers, got torch.bool"),
    ("t_complex", UNET, (X, T * 1j), "whole or fractional numbers, got torch.complex64"),
    ("t_number", UNET, (X, 5), "one for each image, got int"),
    ("t_column", UNET, (X, T[:, None]), "got [2, 1]"),
    ("t_single", UNET, (X, T[:1]), "x holds 2 images, but timesteps 1; give one for each image"),
    ("t_too_many", UNET, (X, torch.arange(3)), "x holds 2 images, but timesteps 3"),
    ("y_unwanted", UNET, (X, T, Y), "this model is not class-conditional; leave out y"),
    ("y_missing", LABELLED, (X, T), "this model is class-conditional; give labels y [N] in 0..9"),
    ("y_too_large", LABELLED, (X, T, Y + 1), "labels must lie in 0..9, got [1, 10]"),
    ("y_negative", LABELLED, (X, T, Y - 1), "labels must lie in 0..9, got [-1, 8]"),
    ("y_null", replace(LABELLED, null_label=True), (X, T, Y + 2), "labels must lie in 0..10, got [2, 11]"),
    ("y_float", LABELLED, (X, T, Y.float()), "y must hold class numbers, int64 or int32, got torch.float32"),
    (
        "y_one_hot",
        LABELLED,
        (X, T, torch.eye(10)[:2]),
        "y must be a tensor of shape [2], one label for each timestep",
    ),
    ("y_single", LABELLED, (X, T, Y[:1]), "got [1]"),
    ("y_number", LABELLED, (X, T, 3), "got int"),
    ("low_res_missing", SMALL, (X, T), "this model enlarges images; give low_res [2, 3, h, w], got NoneType"),
    ("low_res_single", SMALL, (X, T, LOW[:1]), "give low_res [2, 3, h, w], got [1, 3, 8, 8]"),
    ("low_res_grey", SMALL, (X, T, LOW[:, :1]), "got [2, 1, 8, 8]"),
    ("low_res_bytes", SMALL, (X, T, LOW.to(torch.uint8)), "got torch.float32 and torch.uint8"),
    ("bytes_enlarged", SMALL, (X.to(torch.uint8), T, LOW), "got torch.uint8 and torch.float32"),
    ("low_res_stacked", SMALL, (torch.cat([X, X], 1), T, LOW), "[N, 3, H, W], got [2, 6, 16, 16]"),
    (
        "classifier_grey",
        CLASSIFIER,
        (X[:, :1], T),
        "x must be a tensor of shape [N, 3, H, W], got [2, 1, 16, 16]",
    ),
    (
        "classifier_size",
        CLASSIFIER,
        (X[..., :8, :8], T),
        "pools 8x8 features, got 4x4; its images must have the size",
    ),
    ("classifier_t", CLASSIFIER, (X, T[:1]), "x holds 2 images, but timesteps 1"),
]


@pytest.mark.parametrize(("config", "inputs", "fragment"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_calls(config, inputs: tuple, fragment: str) -> None:
    model = build_model(config).eval()
    with torch.no_grad():
        _says(lambda: model(*inputs), fragment)


@pytest.mark.parametrize("shape", [(2, 7), (2,)], ids=str)
def test_embedding_of_another_width(shape: tuple[int, ...]) -> None:
    _says(lambda: UNet(UNET).denoise(X, torch.zeros(shape)), f"shape [2, 128], got {list(shape)}")


def test_labels_at_the_edges_are_taken() -> None:
    with torch.no_grad():
        for dtype in (torch.int64, torch.int32):
            build_model(LABELLED)(X, T, Y.to(dtype))
        build_model(replace(LABELLED, null_label=True))(X, T, Y + 1)


def test_super_resolution_needs_its_option() -> None:
    _says(lambda: SuperResUNet(UNET), "needs low_res='bilinear' or 'bicubic' in its config")
    assert isinstance(build_model(SMALL), SuperResUNet)
    assert type(build_model(UNET)) is UNet
