"""The U-Net's values against straight-line formulas, option by option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from adm_formulas import Formulas, random_model
from torch import Tensor

from fastdiff.models import UNetConfig, build_model
from fastdiff.nn import timestep_embedding

BASE = replace(tiny.UNET, num_heads=2)
CONFIGS: dict[str, UNetConfig] = {
    "base": BASE,
    "additive": replace(BASE, use_scale_shift_norm=False),
    "resample_by_convolution": replace(BASE, resblock_updown=False),
    "resample_by_pooling": replace(BASE, resblock_updown=False, conv_resample=False),
    "new_attention_order": replace(BASE, use_new_attention_order=True, num_heads=4),
    "legacy_attention_order": replace(BASE, num_heads=4),
    "head_channels": replace(BASE, num_head_channels=16, attention_resolutions=(8, 4)),
    "heads_on_the_way_up": replace(BASE, num_heads_upsample=8),
    "attention_before_upsampling": replace(BASE, attention_resolutions=(8, 4), num_res_blocks=2),
    "rescale_residual": replace(BASE, rescale_residual=True),
    "classes": replace(BASE, num_classes=5),
    "null_label": replace(BASE, num_classes=5, null_label=True),
    "variance": replace(BASE, learn_sigma=True),
    "bilinear": replace(BASE, low_res="bilinear"),
    "bicubic": replace(BASE, low_res="bicubic", num_classes=2, learn_sigma=True),
    "depths": replace(BASE, num_res_blocks=(1, 3, 2), channel_mult=(1, 2, 1)),
    "fractions": replace(BASE, model_channels=64, channel_mult=(0.5, 1, 1.5)),
    "one_level": replace(BASE, channel_mult=(1,), attention_resolutions=()),
    "grey": replace(BASE, in_channels=1, out_channels=2),
}


def _inputs(config: UNetConfig, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(3)
    size = config.image_size
    given = {
        "x": torch.randn(2, config.in_channels, size, size, dtype=dtype),
        "timesteps": torch.tensor([0.5, 900.0]),
    }
    if config.num_classes:
        given["y"] = torch.tensor([0, config.num_classes - (not config.null_label)])
    if config.low_res:
        given["low_res"] = torch.randn(2, config.in_channels, size // 2, size // 4, dtype=dtype)
    return given


def _expected(model, inputs: dict[str, Tensor]) -> Tensor:
    return Formulas(model).unet(inputs["x"], inputs["timesteps"], inputs.get("y"), inputs.get("low_res"))


@pytest.mark.parametrize("name", CONFIGS)
def test_values_in_float64(name: str) -> None:
    model, inputs = random_model(CONFIGS[name]), _inputs(CONFIGS[name])
    with torch.no_grad():
        output, expected = model(**inputs), _expected(model, inputs)
    assert output.shape == expected.shape
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["base", "additive", "new_attention_order", "depths", "bilinear"])
def test_values_in_float32(name: str, layout: torch.memory_format) -> None:
    """With the kernels at hand, in both layouts; the layout that comes in goes out."""
    model = random_model(CONFIGS[name])
    inputs = _inputs(CONFIGS[name])
    with torch.no_grad():
        expected = _expected(model, inputs)
        model = model.float().to(memory_format=layout)
        inputs = {
            k: v.float().contiguous(memory_format=layout) if v.dim() == 4 else v for k, v in inputs.items()
        }
        output = model(**inputs)
    assert output.is_contiguous(memory_format=layout)
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-4)


def test_qkv_orders_differ() -> None:
    legacy, new = CONFIGS["legacy_attention_order"], CONFIGS["new_attention_order"]
    inputs = _inputs(legacy)
    with torch.no_grad():
        assert not torch.allclose(random_model(legacy)(**inputs), random_model(new)(**inputs), rtol=0.01)


@pytest.mark.parametrize("height_width", [(8, 12), (2, 2), (16, 4)], ids=str)
def test_other_image_sizes(height_width: tuple[int, int]) -> None:
    """A U-Net is convolutional: image_size decides where attention stands, not what may come in."""
    inputs = {"x": torch.randn(1, 3, *height_width, dtype=torch.float64), "timesteps": torch.tensor([7])}
    model = random_model(BASE)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs), _expected(model, inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 7, 32, 256])
def test_timestep_embedding(dim: int) -> None:
    t = torch.tensor([0, 0.25, 1, 500, 999])
    half = dim // 2
    angle = t.double()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    embedding = timestep_embedding(t, dim)
    assert embedding.dtype == torch.float32
    assert embedding.shape == (5, dim)
    torch.testing.assert_close(embedding[:, :half].double(), angle.cos(), rtol=0, atol=2e-4)
    torch.testing.assert_close(embedding[:, half : 2 * half].double(), angle.sin(), rtol=0, atol=2e-4)
    assert (embedding[:, 2 * half :] == 0).all()


@pytest.mark.parametrize("name", ["classes", "bicubic", "one_level"])
def test_embed_then_denoise_is_forward(name: str) -> None:
    """What a sampler does: all steps' embeddings at once, the small image enlarged once."""
    model, inputs = random_model(CONFIGS[name]), _inputs(CONFIGS[name])
    with torch.no_grad():
        emb = model.embed(inputs["timesteps"], inputs.get("y"))
        x = inputs["x"]
        if "low_res" in inputs:
            x = torch.cat([x, model.enlarge(inputs["low_res"], x)], dim=1)
        assert torch.equal(model.denoise(x, emb), model(**inputs))


def test_fresh_network_predicts_zero() -> None:
    torch.manual_seed(0)
    output = build_model(BASE)(**_inputs(BASE, torch.float32))
    assert (output == 0).all()
