"""Configurations read off bare weights: every preset, and networks of all kinds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, TINY_CLASSIFIER, build

import fastdiff
from fastdiff.checkpoint.detect import detect
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.models import UNetConfig, build_model
from fastdiff.zoo import PRESETS

FILE = Path("model.pt")
_PROJECTION = re.compile(r"\.1\.(qkv|proj_out)\.weight$")


def _shapes(config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_model(config).state_dict().items()}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised(name: str) -> None:
    preset = PRESETS[name]
    shapes = _shapes(preset.model)
    if preset.planar_attention:
        shapes = {key: (*shape, 1) if _PROJECTION.search(key) else shape for key, shape in shapes.items()}
    # Several of the published files have the very same shapes. Of ADM's the diffusion is the same, and they differ in
    # dropout, which sampling does not use; of the others the file's name tells which it is.
    # Weights alone are taken for those of a diffusion model; that a model is for few steps, its file says.
    found = detect(Path(str(preset.released)) if preset.planar_attention else FILE, shapes, {})
    assert replace(found.model, dropout=preset.model.dropout) == preset.model
    assert found.diffusion == replace(preset.diffusion, few_steps=False)


def test_options_replace_fields_of_a_recognised_preset() -> None:
    found = detect(FILE, _shapes(PRESETS["adm-64"].model), {"use_checkpoint": True, "dropout": 0.3})
    assert found.model == replace(PRESETS["adm-64"].model, use_checkpoint=True, dropout=0.3)
    assert found.diffusion == PRESETS["adm-64"].diffusion


def test_image_size_or_heads_mean_a_model_of_ones_own() -> None:
    """The shapes of adm-64 with 4 heads are those of somebody else's network: its diffusion is not known."""
    model = replace(PRESETS["adm-64"].model, num_heads=4, num_head_channels=-1)
    found = detect(FILE, _shapes(model), {"image_size": 64, "num_heads": 4})
    assert found.model == replace(model, dropout=0.0, use_new_attention_order=False)
    assert found.diffusion is None


UNET = replace(TINY, num_heads=2)
UNETS: dict[str, UNetConfig] = {
    "updown": UNET,
    "one_level": replace(UNET, channel_mult=(1,), attention_resolutions=(), resblock_updown=False),
    "five_levels": replace(UNET, image_size=64, channel_mult=(1, 1, 2, 3, 4), attention_resolutions=(16, 4)),
    "convolution": replace(UNET, resblock_updown=False, num_res_blocks=3),
    "pooling": replace(UNET, resblock_updown=False, conv_resample=False, channel_mult=(1, 2, 2)),
    "additive": replace(UNET, use_scale_shift_norm=False),
    "depths": replace(UNET, num_res_blocks=(1, 2, 3), channel_mult=(1, 1, 2)),
    "depths_convolution": replace(
        UNET, num_res_blocks=(3, 1, 2), channel_mult=(1, 1, 2), resblock_updown=False
    ),
    "fractions": replace(UNET, model_channels=64, channel_mult=(0.5, 1, 1.5), num_heads=4),
    "no_attention": replace(UNET, attention_resolutions=()),
    "attention_throughout": replace(UNET, attention_resolutions=(8, 4)),
    "variance": replace(UNET, learn_sigma=True),
    "no_classes": replace(UNET, num_classes=None),
    "colour_low_res": replace(
        UNET, in_channels=3, out_channels=3, learn_sigma=True, low_res="bilinear", num_classes=None
    ),
    "grey_low_res": replace(UNET, low_res="bilinear"),
    "latents": replace(UNET, in_channels=4, out_channels=4),
}
OPTIONS = {  # what these networks' weights do not tell
    "null_label": (replace(UNET, null_label=True), {"null_label": True}),
    "order": (replace(UNET, use_new_attention_order=True), {"use_new_attention_order": True}),
    "head_channels": (replace(UNET, num_heads=1, num_head_channels=32), {"num_head_channels": 32}),
    "heads_up": (replace(UNET, num_heads_upsample=4), {"num_heads_upsample": 4, "num_heads": 2}),
    "bicubic": (replace(UNET, low_res="bicubic"), {"low_res": "bicubic"}),
    "latent_low_res": (
        replace(UNET, in_channels=4, out_channels=4, low_res="bilinear"),
        {"low_res": "bilinear"},
    ),
    "two_channels": (
        replace(UNET, in_channels=2, out_channels=2),
        {"low_res": None},
    ),
    "rescale": (
        replace(UNET, rescale_residual=True, dropout=0.1),
        {"rescale_residual": True, "dropout": 0.1},
    ),
    "depth": (replace(UNET, num_res_blocks=2), {"num_res_blocks": 2}),
}


@pytest.mark.parametrize("name", UNETS)
def test_unets(name: str) -> None:
    model = UNETS[name]
    found = detect(FILE, _shapes(model), {"image_size": model.image_size, "num_heads": model.num_heads})
    # With resblock_updown, or on a single level, other switches of resampling mean nothing.
    if len(model.channel_mult) == 1:
        found = replace(found, model=replace(found.model, conv_resample=True))
    assert found.model == model
    assert found.diffusion is None


@pytest.mark.parametrize("name", OPTIONS)
def test_unets_with_options(name: str) -> None:
    model, options = OPTIONS[name]
    heads = {} if "num_head_channels" in options else {"num_heads": 2}
    assert detect(FILE, _shapes(model), {"image_size": 8, **heads, **options}).model == model


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize("resampling", ["updown", "convolution", "pooling"])
@pytest.mark.parametrize("depth", [1, 2, (2, 1)], ids=str)
def test_classifiers(pool, resampling: str, depth) -> None:
    model = replace(
        TINY_CLASSIFIER,
        pool=pool,
        num_res_blocks=depth,
        attention_resolutions=(4,),
        resblock_updown=resampling == "updown",
        conv_resample=resampling != "pooling",
        num_heads=2,
        num_outputs=7,
    )
    options = {"image_size": 8, "num_heads": 2}
    # Only residual blocks that downsample look like the others; there, the depth has to be told.
    depths = {"num_res_blocks": depth} if resampling == "updown" else {}
    assert detect(FILE, _shapes(model), {**options, **depths}).model == model


@pytest.mark.parametrize("config", [TINY, TINY_CLASSIFIER], ids=["unet", "classifier"])
@pytest.mark.parametrize("value", ["2", 0, -1, 2.5, (), ("1",), (1, -3)], ids=repr)
@pytest.mark.parametrize("name", ["num_res_blocks", "image_size"])
def test_nonsense_among_the_options(config, name: str, value) -> None:
    options = {"image_size": 8, "num_heads": 1, "num_res_blocks": 1, name: value}
    with pytest.raises(FastdiffError) as caught:
        detect(FILE, _shapes(config), options)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "options", "asked"),
    [
        (TINY, {}, "image_size=... and num_heads=... or num_head_channels=..."),
        (TINY, {"num_heads": 1}, "do not tell: image_size=..."),
        (TINY, {"image_size": 8}, "do not tell: num_heads=..."),
        (TINY_CLASSIFIER, {"image_size": 8, "num_heads": 1}, "do not tell: num_res_blocks=..."),
    ],
)
def test_what_weights_do_not_tell_is_asked_for(config, options, asked: str) -> None:
    with pytest.raises(FastdiffError) as caught:
        detect(FILE, _shapes(config), options)
    assert asked in str(caught.value)


def test_precedence(tmp_path: Path, monkeypatch) -> None:
    """Options before preset before metadata before detection; a diffusion that is given before all others."""
    stored = replace(TINY, dropout=0.1)
    chosen = replace(TINY, dropout=0.2)
    monkeypatch.setitem(PRESETS, "chosen", replace(PRESETS["adm-64"], model=chosen))
    model = build(stored)
    model.diffusion = DiffusionConfig(steps=33)
    model.class_names = ("a", "b", "c")
    file = tmp_path / "model.safetensors"
    fastdiff.save(model, file)

    again = fastdiff.load(file)
    assert (again.config, again.diffusion) == (stored, model.diffusion)
    again = fastdiff.load(file, preset="chosen")
    assert (again.config, again.diffusion) == (chosen, PRESETS["adm-64"].diffusion)
    assert again.class_names == model.class_names
    again = fastdiff.load(file, preset="chosen", dropout=0.3, diffusion=DiffusionConfig(steps=44))
    assert (again.config, again.diffusion) == (replace(TINY, dropout=0.3), DiffusionConfig(steps=44))
    assert fastdiff.load(file, dropout=0.3).config == replace(TINY, dropout=0.3)


def test_number_of_heads_replaces_channels_of_a_head(tmp_path: Path) -> None:
    fastdiff.save(build(replace(TINY, num_head_channels=32)), tmp_path / "model.safetensors")
    model = fastdiff.load(tmp_path / "model.safetensors", num_heads=4)
    assert model.config.heads(64) == 4
