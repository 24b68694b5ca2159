"""The 12 published files of openai/consistency_models: names, shapes, sizes, kinds; and reading such files."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

import fastdiff
from fastdiff import DiffusionConfig, FastdiffError
from fastdiff.checkpoint.detect import detect
from fastdiff.checkpoint.released import RELEASED
from fastdiff.models import UNet, UNetConfig, build_model
from fastdiff.zoo import PRESETS, Preset

# Of the repository's own networks, built by its code from the flags of its launch.sh: tensors, parameters, and the
# SHA-256 of the sorted list of names and shapes as JSON.
IMAGENET = (541, 295_899_267, "79fc01b52038314f7488d71499d92a68c42d91b308d289d36d632f6a9fd61d7b")
LSUN = (566, 526_304_771, "e64503c9d97b79aec45cdb06decb14e8f9792ee6f86eba67ef3f5427e5f264f2")
FILES = {
    "edm-imagenet-64": ("edm_imagenet64_ema.pt", "edm", 0.1, IMAGENET),
    "cd-imagenet-64-l2": ("cd_imagenet64_l2.pt", "consistency", 0.0, IMAGENET),
    "cd-imagenet-64-lpips": ("cd_imagenet64_lpips.pt", "consistency", 0.0, IMAGENET),
    "ct-imagenet-64": ("ct_imagenet64.pt", "consistency", 0.0, IMAGENET),
    "edm-bedroom-256": ("edm_bedroom256_ema.pt", "edm", 0.1, LSUN),
    "cd-bedroom-256-l2": ("cd_bedroom256_l2.pt", "consistency", 0.0, LSUN),
    "cd-bedroom-256-lpips": ("cd_bedroom256_lpips.pt", "consistency", 0.0, LSUN),
    "ct-bedroom-256": ("ct_bedroom256.pt", "consistency", 0.0, LSUN),
    "edm-cat-256": ("edm_cat256_ema.pt", "edm", 0.1, LSUN),
    "cd-cat-256-l2": ("cd_cat256_l2.pt", "consistency", 0.0, LSUN),
    "cd-cat-256-lpips": ("cd_cat256_lpips.pt", "consistency", 0.0, LSUN),
    "ct-cat-256": ("ct_cat256.pt", "consistency", 0.0, LSUN),
}
TINY = UNetConfig(
    image_size=16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=32,
    use_new_attention_order=True,
)


def planar(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict with the projections of attention as 2-d convolutions."""
    ends = (".qkv.weight", ".proj_out.weight")
    return {name: t[..., None] if name.endswith(ends) else t for name, t in state.items()}


@pytest.mark.parametrize("name", FILES)
def test_names_shapes_and_kind(name: str) -> None:
    file, kind, dropout, (tensors, parameters, digest) = FILES[name]
    preset = PRESETS[name]
    with torch.device("meta"):
        model = build_model(preset.model)
    state = planar(model.state_dict())
    assert len(state) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    listed = json.dumps(sorted([key, list(value.shape)] for key, value in state.items()))
    assert hashlib.sha256(listed.encode()).hexdigest() == digest
    assert preset.released == file
    assert preset.diffusion == DiffusionConfig(parametrisation=kind)  # pyright: ignore[reportArgumentType]
    assert isinstance(preset.model, UNetConfig)
    assert preset.model.dropout == dropout and preset.model.use_new_attention_order
    assert preset.model.num_classes == (1000 if "imagenet" in name else None)
    assert RELEASED[name].address == f"https://openaipublic.blob.core.windows.net/consistency/{file}"


def test_all_twelve_are_known() -> None:
    assert {name for name, preset in PRESETS.items() if preset.planar_attention} == set(FILES)


def test_the_name_of_a_file_tells_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        state = planar(build_model(PRESETS["edm-imagenet-64"].model).state_dict())
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert (
        detect(Path("/a/ct_imagenet64.safetensors"), shapes, {}).diffusion
        == PRESETS["ct-imagenet-64"].diffusion
    )
    with caplog.at_level(logging.WARNING, "fastdiff"):
        found = detect(Path("/a/model.pt"), shapes, {})
    assert found.diffusion is None and replace(found.model, dropout=0.0) == PRESETS["ct-imagenet-64"].model
    assert "give preset, one of edm-imagenet-64, cd-imagenet-64-l2," in caplog.text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> UNet:
    """A small network in place of one of the published ones."""
    preset = Preset(TINY, PRESETS["edm-cat-256"].diffusion, "edm_cat256_ema.pt", planar_attention=True)
    monkeypatch.setitem(PRESETS, "edm-cat-256", preset)
    model = tiny.build(TINY)
    assert isinstance(model, UNet)
    return model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_load_and_sample(small: UNet, tmp_path: Path, suffix: str) -> None:
    """2-d projections become those of tokens, with queries, keys and values first and heads second."""
    file = tmp_path / f"edm_cat256_ema{suffix}"
    state = planar(small.state_dict())
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model: Any = fastdiff.load(file)
    assert model.config == TINY and model.diffusion.parametrisation == "edm"
    for name, value in small.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([-250.5])
    torch.testing.assert_close(model(x, t), small.eval()(x, t))
    images = fastdiff.sample(model, 2, sampler="heun", steps=3, progress=False)
    fastdiff.save(model, tmp_path / "own.safetensors")
    again: Any = fastdiff.load(tmp_path / "own.safetensors")
    torch.testing.assert_close(fastdiff.sample(again, 2, sampler="heun", steps=3, progress=False), images)


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    """A file of cm_train.py, for example: the order of queries, keys and values follows from the 2-d projections."""
    file = tmp_path / "ema_0.999_000100.pt"
    torch.save(planar(tiny.build(TINY).state_dict()), file)
    given = DiffusionConfig(parametrisation="consistency")
    model: Any = fastdiff.load(file, image_size=16, num_head_channels=32, diffusion=given)
    assert model.config == TINY and model.diffusion == given
    with pytest.raises(FastdiffError, match="give what they do not tell: image_size"):
        fastdiff.load(file)
