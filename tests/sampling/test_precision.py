"""Sampling in another precision than the model's: the policies, and that the model itself stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import fastdiff
from fastdiff.backend import Backend
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet
from fastdiff.ops.conv2d import forward_op as conv2d_op
from fastdiff.sampling import Sampler, sample
from fastdiff.sampling.precision import Cast

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS: dict[str, Any] = {"steps": 3, "sampler": "ancestral", "seed": 5, "progress": False}


@pytest.fixture(scope="module")
def model() -> UNet:
    """With noise in place of the layers that start at zero."""
    torch.manual_seed(0)
    unet = UNet(tiny.UNET)
    with torch.no_grad():
        for p in unet.parameters():
            p.copy_(0.05 * torch.randn(p.shape) + (1 if p.ndim == 1 and p.any() else 0))
    unet.diffusion = DiffusionConfig(steps=40)
    return unet.to(DEVICE).eval()


def _dtypes(module: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in module.parameters()}


@pytest.mark.parametrize("precision", ["adm-fp16", "bfloat16"])
def test_equals_a_model_cast_by_hand(model: UNet, precision: str) -> None:
    cast = copy.deepcopy(model)
    cast = cast.half_trunk() if precision == "adm-fp16" else cast.bfloat16()
    cast = cast.to(memory_format=torch.channels_last)
    images = sample(model, 2, precision=precision, optimize=False, **OPTIONS)
    assert images.dtype == torch.float32
    assert torch.equal(images, sample(cast, 2, optimize=False, **OPTIONS))
    assert _dtypes(model) == {torch.float32}
    assert 0 < (images - sample(model, 2, **OPTIONS)).norm() < 0.2 * images.norm()


def test_adm_fp16_is_guided_diffusions_policy(model: UNet) -> None:
    twin: Any = Cast(model, "adm-fp16", torch.channels_last).module()
    for name, module in twin.named_modules():
        half = isinstance(module, (nn.Conv1d, nn.Conv2d)) and not name.startswith("out.")
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (torch.float16 if half else torch.float32), name
    assert not twin.training and not any(p.requires_grad for p in twin.parameters())


@pytest.mark.skipif(DEVICE == "cuda", reason="fastdiff.optimize is for the CPU")
def test_on_the_cpu_bfloat16_is_what_optimize_makes(model: UNet) -> None:
    if reason := conv2d_op.why_not(Backend.CPU):
        pytest.skip(reason)
    sampler = Sampler(model, steps=3, sampler="ancestral", precision="bfloat16")
    images = sampler(2, seed=5, progress=False)
    assert "_cast" not in vars(sampler), "no copy"
    handle = fastdiff.optimize(model, torch.bfloat16)
    try:
        assert torch.equal(images, sample(model, 2, **OPTIONS))
        with pytest.raises(FastdiffError, match="optimized in a dtype of its own; restore"):
            Sampler(model, precision="bfloat16")
    finally:
        handle.restore()


def test_the_copy_follows_the_model(model: UNet) -> None:
    model = copy.deepcopy(model)
    with Sampler(model, steps=3, precision="bfloat16", optimize=False) as sampler:
        before, twin = sampler(2, progress=False), sampler._cast.module()
        addresses = [p.data_ptr() for p in twin.parameters()]
        with torch.no_grad():
            model.out[2].weight.mul_(-1)
        after = sampler(2, progress=False)
        assert not torch.equal(before, after)
        assert [p.data_ptr() for p in sampler._cast.module().parameters()] == addresses
    assert "_cast" not in vars(sampler), "freed"
    assert torch.equal(after, sample(model, 2, steps=3, precision="bfloat16", optimize=False, progress=False))


@pytest.mark.parametrize(
    ("model", "precision", "sentence"),
    [
        (nn.Conv2d(1, 1, 1), "float8", "unknown precision 'float8'; known: adm-fp16, bfloat16"),
        (nn.Conv2d(1, 1, 1), "adm-fp16", "for fastdiff's U-Nets, got Conv2d; 'bfloat16' is for any module"),
        (lambda x, t: x, "bfloat16", "casts a module's parameters, and a function has none"),
    ],
    ids=["name", "policy", "function"],
)
def test_errors(model: Any, precision: str, sentence: str) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        Sampler(model, shape=(1, 4, 4), diffusion=DiffusionConfig(), precision=precision)  # type: ignore[arg-type]
