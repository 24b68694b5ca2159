"""Small U-Nets of every kind, random throughout, and what the tests of the engine ask of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from fastdiff.models import UNet, build_model

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "additive_embedding": dict(use_scale_shift_norm=False),
    "strided_convolutions": dict(resblock_updown=False),
    "resampling_without_convolutions": dict(resblock_updown=False, conv_resample=False),
    "new_attention_order": dict(use_new_attention_order=True, num_heads=2),
    "several_heads": dict(num_head_channels=16, attention_resolutions=(8, 4)),
    "classes": dict(num_classes=3, null_label=True),
    "learned_sigma": dict(learn_sigma=True),
    "rescaled": dict(rescale_residual=True),
    "rescaled_additive": dict(rescale_residual=True, use_scale_shift_norm=False, resblock_updown=False),
    "super_resolution": dict(low_res="bilinear"),
    "gray": dict(in_channels=1, out_channels=1),
    "narrower_below": dict(channel_mult=(2, 1), attention_resolutions=()),
    "deep": dict(channel_mult=(1, 1, 2), num_res_blocks=(1, 2, 1)),
}


def small_model(**options: Any) -> UNet:
    """Small and random, also where layers start at zero."""
    model = build_model(replace(tiny.UNET, **options))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        fan_in = p[0].numel() if p.dim() > 1 else 25
        p.data = p.data * (p.dim() == 1) + torch.randn(p.shape, generator=generator) / fan_in**0.5
    assert isinstance(model, UNet)
    return model.eval()


def inputs_of(model: UNet, n: int = 2, h: int = 8, w: int = 8, dtype: torch.dtype = torch.float32) -> dict:
    g, config = torch.Generator().manual_seed(1), model.config
    x = torch.randn(n, config.in_channels, h, w, generator=g).contiguous(memory_format=torch.channels_last)
    inputs = {"x": x.to(dtype), "timesteps": 10.0 * torch.arange(n) + 3}
    if config.num_classes is not None:
        inputs["y"] = torch.arange(n) % 3
    if config.low_res is not None:
        inputs["low_res"] = torch.randn(n, config.in_channels, h // 2, w // 2, generator=g).to(dtype)
    return inputs


def run(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**(inputs or inputs_of(model)))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # sums in another order


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert [k for k, v in state.items() if not torch.equal(v, weights[k])] == []


def storage_of(model: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in model.parameters())
