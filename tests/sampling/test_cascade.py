"""Cascades whose upsampler has no classes, as those that see enough in the small image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import fastdiff
from fastdiff import DiffusionConfig
from fastdiff.models import build_model
from fastdiff.sampling.cascade import low_resolution


@pytest.fixture(scope="module")
def models():
    base = replace(tiny.GRAY, num_classes=3, null_label=True)
    upsampler = replace(
        tiny.GRAY, image_size=2 * base.image_size, num_classes=None, null_label=False, low_res="bilinear"
    )
    made = []
    for config in (base, upsampler):
        torch.manual_seed(0)
        model = build_model(config).eval().requires_grad_(False)
        for p in model.parameters():
            p.data += 0.05 * torch.randn(p.shape)
        model.diffusion = DiffusionConfig(schedule="cosine")
        made.append(model)
    return made


@pytest.mark.parametrize("scale", [None, 2.0])
def test_classes_and_guidance_are_the_bases_alone(models, scale: float | None) -> None:
    base, upsampler = models
    classes, options = [0, 2, 1], {"steps": 3, "seed": 4, "progress": False}
    found = fastdiff.cascade(base, upsampler, 3, classes=classes, guidance_scale=scale, **options)
    small = fastdiff.sample(base, 3, classes=classes, guidance_scale=scale, **options)
    assert torch.equal(found, fastdiff.upsample(upsampler, small, **options))
    assert found.shape == (3, 1, 2 * small.shape[2], 2 * small.shape[3])


@pytest.mark.parametrize("sampler", ["dpmpp", "ancestral"])
def test_means_are_kept(models, sampler) -> None:
    base, upsampler = models
    options = {"steps": 4, "sampler": sampler, "progress": False}
    found = fastdiff.cascade(base, upsampler, 3, classes=1, keep_means=True, **options)
    small = low_resolution(fastdiff.sample(base, 3, classes=1, **options))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(found, 2), small, atol=1e-5, rtol=0)
    free = fastdiff.cascade(base, upsampler, 3, classes=1, **options)
    assert (torch.nn.functional.avg_pool2d(free, 2) - small).abs().mean() > 0.05
