"""The count by hooks against the published figures and against PyTorch's own count of operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastdiff.backend import use_backend
from fastdiff.bench import Compute, count
from fastdiff.models import ClassifierConfig, ModelConfig, UNetConfig, build_model
from fastdiff.zoo import PRESETS

# Parameters and GMACs of a forward pass: tables 11 to 13 of Dhariwal & Nichol 2021, and the released checkpoints.
KNOWN = {
    "adm-64": (295_904_454, 109.7),
    "adm-128": (421_529_606, 306.9),
    "adm-256": (553_838_086, 1119.8),
    "adm-256-uncond": (552_814_086, 1119.8),
    "adm-lsun-bedroom": (552_814_086, 1119.8),
    "adm-512": (558_997_638, 1982.3),
    "adm-64-256": (311_795_910, 631.6),
    "adm-128-512": (308_835_270, 2504.8),
    "adm-64-classifier": (65_440_000, 19.1),
    "adm-128-classifier": (42_570_000, 21.0),
    "adm-256-classifier": (54_100_000, 73.3),
    "adm-512-classifier": (54_450_000, 112.8),
    "ddpm-cifar10": (35_746_307, 6.2),
    "iddpm-cifar10": (52_546_438, 8.4),
    "iddpm-imagenet-64": (121_063_942, 39.7),
}

_UNET = UNetConfig(image_size=16, model_channels=32, channel_mult=(1, 2), attention_resolutions=(8,))
_CLASSIFIER = ClassifierConfig(image_size=16, model_channels=32, channel_mult=(1, 2), num_outputs=7)
CONFIGS: dict[str, ModelConfig] = {
    "adm-64": PRESETS["adm-64"].model,
    "ddpm-cifar10": PRESETS["ddpm-cifar10"].model,
    "fashion-mnist": PRESETS["fashion-mnist"].model,
    "depths": replace(_UNET, num_res_blocks=(1, 3), channel_mult=(1, 2), num_heads=4, learn_sigma=True),
    "plain-resampling": replace(_UNET, resblock_updown=False, conv_resample=False, num_classes=5),
    "low-res": replace(_UNET, low_res="bilinear", use_scale_shift_norm=False),
    **{pool: replace(_CLASSIFIER, pool=pool) for pool in ("adaptive", "attention", "spatial", "spatial_v2")},
}


# Building them without memory takes seconds each: the larger ones are proofs.
QUICK = {"adm-64", "adm-64-256", "adm-64-classifier", "ddpm-cifar10", "iddpm-cifar10", "iddpm-imagenet-64"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.proof] * (name not in QUICK)) for name in KNOWN]
)
def test_published_counts(name: str) -> None:
    parameters, gmacs = KNOWN[name]
    cost = count(PRESETS[name].model)
    rounded = parameters % 10_000 == 0
    assert cost.parameters == pytest.approx(parameters, abs=5_000 if rounded else 0)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert sum(cost.macs_by_kind.values()) == cost.macs


def _counted_by_torch(config: ModelConfig) -> tuple[Compute, int]:
    """PyTorch's counts, forward, and of the backward pass in floating-point operations."""
    with torch.device("meta"):
        model = build_model(config)
        x = torch.empty(1, config.in_channels, config.image_size, config.image_size)
        arguments = [x, torch.zeros(1)]
        if isinstance(config, UNetConfig) and config.low_res:
            arguments.append(x)
        if isinstance(config, UNetConfig) and config.num_classes:
            arguments.append(torch.zeros(1, dtype=torch.int64))
    with use_backend("eager"):
        with FlopCounterMode(display=False) as forward:
            loss = model(*arguments).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    parameters = sum(p.numel() for p in model.parameters())
    return Compute(forward.get_total_flops() // 2, parameters), backward.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_count_is_that_of_a_pass_on_the_meta_device(name: str) -> None:
    config = CONFIGS[name]
    cost, (found, backward) = count(config), _counted_by_torch(config)
    assert cost.parameters == found.parameters
    assert cost.macs == found.macs
    # Two products for each one of the forward pass, but for the image's own gradient, which nobody asks for.
    assert 2 * cost.macs + backward == pytest.approx(cost.training_flops, rel=0.005)
