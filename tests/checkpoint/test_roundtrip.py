"""What is saved comes back: bit for bit, with configuration, diffusion and class names; also from .pt files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, TINY_CLASSIFIER, build
from torch import Tensor

import fastdiff
from fastdiff.diffusion.config import DiffusionConfig

CONFIGS = {
    "unet": TINY,
    "low_res": replace(TINY, low_res="bicubic", num_classes=None, dropout=0.25),
    "options": replace(
        TINY,
        num_res_blocks=(2, 1),
        channel_mult=(1, 1.5),
        num_heads=4,
        num_heads_upsample=1,
        rescale_residual=True,
        null_label=True,
        attention_resolutions=(4, 8),
        model_channels=64,
        num_classes=2,
        use_new_attention_order=True,
    ),
    "classifier": TINY_CLASSIFIER,
}


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert torch.equal(value, b[name]), name


def _run(model, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    cond = {}
    if getattr(model.config, "low_res", None):
        cond["low_res"] = torch.randn(2, 1, 4, 4)
    if getattr(model.config, "num_classes", None):
        cond["y"] = torch.tensor([0, 1])
    with torch.no_grad():
        return model(x, t, **cond)


@pytest.mark.parametrize("name", CONFIGS)
def test_save_and_load(tmp_path: Path, name: str) -> None:
    model = build(CONFIGS[name])
    model.diffusion = DiffusionConfig(steps=77, schedule="cosine", prediction="v", rescale_timesteps=True)
    model.class_names = ("T-shirt", "Größe \u2028", "")
    fastdiff.save(model, tmp_path / "model.safetensors")
    again = fastdiff.load(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.diffusion == model.diffusion
    assert again.class_names == model.class_names
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    _assert_same(model.state_dict(), again.state_dict())
    assert torch.equal(_run(model), _run(again))


def test_without_diffusion(tmp_path: Path) -> None:
    fastdiff.save(build(TINY), tmp_path / "model.safetensors")
    assert fastdiff.load(tmp_path / "model.safetensors").diffusion is None


def test_saving_what_was_loaded_gives_the_same_file(tmp_path: Path, model) -> None:
    fastdiff.save(model, tmp_path / "a.safetensors")
    fastdiff.save(fastdiff.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_memory_format_is_not_stored(tmp_path: Path, model) -> None:
    """channels_last weights are the same weights."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fastdiff.save(model.to(memory_format=torch.channels_last), tmp_path / "model.safetensors")
    _assert_same(before, fastdiff.load(tmp_path / "model.safetensors").state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_in_half_the_bytes(tmp_path: Path, model, dtype) -> None:
    fastdiff.save(model, tmp_path / "full.safetensors")
    fastdiff.save(model, tmp_path / "half.safetensors", dtype=dtype)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    rounded = {name: value.to(dtype).float() for name, value in model.state_dict().items()}
    _assert_same(rounded, fastdiff.load(tmp_path / "half.safetensors").state_dict())
    half = fastdiff.load(tmp_path / "full.safetensors", dtype=dtype).state_dict()
    _assert_same({name: value.to(dtype) for name, value in model.state_dict().items()}, half)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "step": 7},
        lambda weights: {"model": weights, "epoch": 1},
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"state_dict": {f"module.{k}": v for k, v in weights.items()}},
    ],
    ids=["plain", "state_dict", "model", "module", "state_dict_of_module"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_state_dicts_of_pytorch(tmp_path: Path, model, wrap, legacy: bool) -> None:
    file = tmp_path / "ema_0.9999_000100.pt"
    torch.save(wrap(model.state_dict()), file, _use_new_zipfile_serialization=not legacy)
    diffusion = DiffusionConfig(steps=50)
    again = fastdiff.load(file, image_size=8, num_heads=1, diffusion=diffusion)
    assert again.config == replace(TINY, num_heads=1)
    assert again.diffusion == diffusion
    _assert_same(model.state_dict(), again.state_dict())


def test_loaded_weights_are_independent_of_the_file(tmp_path: Path, model) -> None:
    """A model may be overwritten by its successor: nothing stays mapped."""
    file = tmp_path / "model.safetensors"
    fastdiff.save(model, file)
    first = fastdiff.load(file)
    fastdiff.save(build(TINY, seed=5), file)
    _assert_same(model.state_dict(), first.state_dict())
