"""Presets against the published checkpoints: every parameter name, shape and place, and the papers' sizes."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdiff.models import ClassifierConfig, build_model
from fastdiff.zoo import PRESETS

FACTS = Path(__file__).resolve().parent.parent / "data" / "adm_keys.json.gz"
RELEASED = [name for name, preset in PRESETS.items() if preset.released and not preset.planar_attention]
# openai/consistency_models: those of tests/models/test_cm_released.py.
OTHERS = [name for name, preset in PRESETS.items() if preset.planar_attention]

PARAMETERS = {
    "adm-64": 295_904_454,
    "adm-128": 421_529_606,
    "adm-256": 553_838_086,
    "adm-256-uncond": 552_814_086,
    "adm-512": 558_997_638,
    "adm-512-uncond": 557_973_638,
    "adm-64-256": 311_795_910,
    "adm-128-512": 308_835_270,
    "adm-lsun-bedroom": 552_814_086,
    "adm-lsun-cat": 552_814_086,
    "adm-lsun-horse": 552_814_086,
    "adm-lsun-horse-nodropout": 552_814_086,
    "ddpm-cifar10": 35_746_307,
    "iddpm-cifar10": 52_546_438,
    "iddpm-imagenet-64": 121_063_942,
}
MILLIONS = {  # where only the rounded size is published, or the model is our own
    "adm-64-classifier": 65.44,
    "adm-128-classifier": 42.57,
    "adm-256-classifier": 54.10,
    "adm-512-classifier": 54.45,
    "fashion-mnist": 1.739,
    "fashion-mnist-few": 1.739,
    "emoji": 5.085,
    "emoji-upsampler": 1.128,
    "fashion-mnist-classifier": 0.5625,
}
SAME_NETWORK = {  # files of which only a sibling's keys are kept here
    **{f"lsun_{scene}": "lsun_bedroom" for scene in ("cat", "horse", "horse_nodropout")},
    "512x512_diffusion_uncond_finetune_008100": "512x512_diffusion",
}


@functools.cache
def _published() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress(FACTS.read_bytes()))


@functools.cache
def _model(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(PRESETS[name].model)


@pytest.mark.parametrize("name", RELEASED)
def test_names_shapes_and_order(name: str) -> None:
    file = str(PRESETS[name].released).removesuffix(".pt")
    published = _published()[SAME_NETWORK.get(file, file)]
    if PRESETS[name].model == replace(PRESETS["adm-512"].model, num_classes=None):
        published = {key: shape for key, shape in published.items() if key != "label_emb.weight"}
    ours = {key: list(value.shape) for key, value in _model(name).state_dict().items()}
    assert ours == published
    assert list(ours) == list(published)


def test_every_published_file_has_a_preset() -> None:
    files = {str(PRESETS[name].released).removesuffix(".pt") for name in RELEASED}
    assert set(_published()) <= files
    assert len(files) == len(RELEASED), "two presets name the same file"


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in OTHERS])
def test_number_of_parameters(name: str) -> None:
    count = sum(p.numel() for p in _model(name).parameters())
    if name in PARAMETERS:
        assert count == PARAMETERS[name]
    else:
        assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_network_and_diffusion_agree(name: str) -> None:
    """A network returns variances exactly if its diffusion takes them from the network."""
    preset = PRESETS[name]
    if isinstance(preset.model, ClassifierConfig):
        assert preset.model.num_outputs == (1000 if preset.released else 10)
    else:
        assert preset.model.learn_sigma == preset.diffusion.learns_variance


def test_flags_that_leave_no_trace_in_weights() -> None:
    """Attention heads, qkv order, dropout and schedule of the published flags."""
    heads = {"adm-128": 4, "adm-64-256": 4}
    for name in RELEASED:
        model, diffusion = PRESETS[name].model, PRESETS[name].diffusion
        widest = max(model.level_channels)
        assert model.heads(widest) == heads.get(name, widest // 64), name
        assert model.use_new_attention_order == (name == "adm-64"), name
        assert diffusion.schedule == ("cosine" if "64x64" in str(PRESETS[name].released) else "linear"), name
        dropout = 0.1 if name in ("adm-64", "adm-lsun-bedroom", "adm-lsun-cat", "adm-lsun-horse") else 0
        assert model.dropout == dropout, name
