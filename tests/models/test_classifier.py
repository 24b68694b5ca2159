"""The noisy-image classifier's logits against straight-line formulas, for all four heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from adm_formulas import Formulas, random_model

from fastdiff.errors import FastdiffError
from fastdiff.models import build_model

BASE = replace(tiny.CLASSIFIER, num_head_channels=16, num_outputs=7)
POOLS = ["attention", "adaptive", "spatial", "spatial_v2"]


def _inputs(dtype: torch.dtype = torch.float64, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(3, 3, size, size, dtype=dtype), torch.tensor([0, 17, 999])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("options", [{}, {"resblock_updown": False, "num_head_channels": -1}], ids=["a", "b"])
def test_values_in_float64(pool, options: dict) -> None:
    model = random_model(replace(BASE, pool=pool, **options))
    with torch.no_grad():
        logits, expected = model(*_inputs()), Formulas(model).classifier(*_inputs())
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_values_in_float32(pool, layout: torch.memory_format) -> None:
    model = random_model(replace(BASE, pool=pool))
    x, t = _inputs()
    with torch.no_grad():
        expected = Formulas(model).classifier(x, t)
        logits = model.float().to(memory_format=layout)(x.float().contiguous(memory_format=layout), t)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("pool", POOLS)
def test_gradient_with_respect_to_the_image(pool) -> None:
    """What guidance adds: the gradient of log p(y | x_t) in x_t."""
    model = random_model(replace(BASE, pool=pool))
    x, t = _inputs()
    gradients = []
    for network in (model, Formulas(model).classifier):
        image = x.clone().requires_grad_()
        chosen = network(image, t).log_softmax(-1)[range(3), [0, 3, 6]].sum()
        gradients.append(torch.autograd.grad(chosen, image)[0])
    largest = gradients[1].abs().max().item()
    assert largest > 1e-4
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9 * largest)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_trunk(pool, dtype: torch.dtype) -> None:
    model = random_model(replace(BASE, pool=pool), torch.float32, std=0.08)
    x, t = _inputs(torch.float32)
    with torch.no_grad():
        full = model(x, t)
        half = model.half_trunk(dtype)(x, t)
    assert {p.dtype for p in model.out.parameters()} == {torch.float32}
    assert half.dtype == torch.float32
    error = (half - full).norm() / full.norm()
    assert 0 < error < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("image", [torch.bfloat16, torch.float32], ids=str)
def test_bfloat16(pool, image: torch.dtype) -> None:
    """A bfloat16 network takes images of any dtype and answers in theirs."""
    model = random_model(replace(BASE, pool=pool), torch.float32, std=0.08)
    x, t = _inputs(torch.float32)
    with torch.no_grad():
        full, half = model(x, t), model.bfloat16()(x.to(image), t)
    assert half.dtype == image
    assert (half - full).norm() < 0.1 * full.norm()


def test_attention_pool_has_one_image_size() -> None:
    model = random_model(BASE)
    with pytest.raises(FastdiffError, match="pools 4x4 features, got 8x8"):
        model(*_inputs(size=16))
    with torch.no_grad():
        assert random_model(replace(BASE, pool="adaptive"))(*_inputs(size=16)).shape == (3, 7)


def test_checkpointing_gives_equal_gradients() -> None:
    results = []
    for recompute in (False, True):
        model = random_model(replace(BASE, use_checkpoint=recompute))
        model(*_inputs()).square().sum().backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("pool", POOLS)
def test_empty_batch(pool) -> None:
    x, t = _inputs()
    with torch.no_grad():
        assert random_model(replace(BASE, pool=pool))(x[:0], t[:0]).shape == (0, 7)


def test_fresh_logits_are_finite() -> None:
    torch.manual_seed(0)
    for pool in POOLS:
        logits = build_model(replace(BASE, pool=pool))(*_inputs(torch.float32))
        assert logits.isfinite().all()
