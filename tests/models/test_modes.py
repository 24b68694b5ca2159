"""A U-Net in training, in half precision, with recomputation and compiled: the same function throughout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from adm_formulas import Formulas, random_model
from torch import Tensor, nn

from fastdiff.backend import use_backend

CONFIG = replace(tiny.UNET, num_heads=2, num_classes=4)


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(2, 3, 8, 8, dtype=dtype), torch.tensor([20, 700]), torch.tensor([3, 1])


def _gradients(function, model, x: Tensor, *rest: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that weighs all outputs differently, for the image and for every parameter."""
    x = x.clone().requires_grad_()
    out = function(x, *rest)
    named = {"x": x, **dict(model.named_parameters())}
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("options", [{}, {"use_scale_shift_norm": False, "resblock_updown": False}], ids=len)
def test_gradients(options: dict) -> None:
    model = random_model(replace(CONFIG, **options))
    formulas = Formulas(model)
    formulas.w = dict(model.named_parameters())
    ours = _gradients(model, model, *_inputs(torch.float64))
    expected = _gradients(formulas.unet, model, *_inputs(torch.float64))
    for name, gradient in expected.items():
        bound = 1e-8 * gradient.abs().max().item() + 1e-9
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_in_float32(layout: torch.memory_format) -> None:
    """Kernels stay as close to float64 as eager PyTorch does."""
    model = random_model(CONFIG)
    expected = _gradients(model, model, *_inputs(torch.float64))
    model = model.float().to(memory_format=layout)
    x, t, y = _inputs(torch.float64)
    x = x.float().contiguous(memory_format=layout)
    ours = _gradients(model, model, x, t, y)
    with use_backend("eager"):
        eager = _gradients(model, model, x, t, y)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        error, usual = ((g[name] - gradient).norm() for g in (ours, eager))
        assert error <= 2 * usual + 1e-6 * largest, f"{name}: {error:.1e}, eager {usual:.1e}"


def test_checkpointing_gives_equal_gradients() -> None:
    results, calls = [], []
    for recompute in (False, True):
        model = random_model(replace(CONFIG, use_checkpoint=recompute, dropout=0.5), torch.float32).train()
        calls.append(0)
        model.input_blocks[1][0].in_layers[2].register_forward_hook(lambda *_: calls.append(calls.pop() + 1))
        torch.manual_seed(9)  # the same elements are dropped when a block is computed again
        results.append(_gradients(model, model, *_inputs()))
    assert calls == [1, 2], "blocks are computed again in the backward pass"
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_dropout_only_in_training() -> None:
    model = random_model(replace(CONFIG, dropout=0.5), torch.float32)
    plain = random_model(CONFIG, torch.float32)
    with torch.no_grad():
        assert torch.equal(model(*_inputs()), plain(*_inputs()))
        model.train()
        x, t, y = _inputs()
        assert not torch.allclose(model(x, t, y), model(x, t, y))


def test_half_trunk_casts_its_convolutions_alone() -> None:
    model = random_model(CONFIG, torch.float32).half_trunk()
    inside = {*model.input_blocks.modules(), *model.middle_block.modules(), *model.output_blocks.modules()}
    for name, module in model.named_modules():
        half = module in inside and isinstance(module, (nn.Conv1d, nn.Conv2d))
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (torch.float16 if half else torch.float32), name
    assert model.dtype == torch.float16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_scale_shift_norm": False, "low_res": "bilinear"}], ids=len)
def test_half_trunk_values(dtype: torch.dtype, options: dict, layout) -> None:
    model = random_model(replace(CONFIG, **options), torch.float32, std=0.08)
    x, t, y = _inputs()
    given = {"x": x.contiguous(memory_format=layout), "timesteps": t, "y": y}
    if "low_res" in options:
        given["low_res"] = x[..., ::2, ::2]
    with torch.no_grad():
        full, half = model(**given), model.half_trunk(dtype)(**given)
    assert half.dtype == torch.float32
    error = (half - full).norm() / full.norm()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("image", [torch.bfloat16, torch.float32], ids=str)
def test_bfloat16(image: torch.dtype) -> None:
    """A bfloat16 network takes images of any dtype and answers in theirs."""
    model = random_model(CONFIG, torch.float32, std=0.08)
    x, t, y = _inputs()
    with torch.no_grad():
        full, half = model(x, t, y), model.bfloat16()(x.to(image), t, y)
    assert half.dtype == image
    assert (half - full).norm() < 0.05 * full.norm()


def test_each_image_by_itself() -> None:
    model = random_model(CONFIG)
    x, t, y = _inputs(torch.float64)
    with torch.no_grad():
        single = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(model(x, t, y), single, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_empty_batch(layout: torch.memory_format) -> None:
    x, t, y = _inputs(torch.float64)
    with torch.no_grad():
        output = random_model(CONFIG)(x[:0].contiguous(memory_format=layout), t[:0], y[:0])
    assert output.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_compiles_as_one_graph(grad: bool) -> None:
    model = random_model(CONFIG, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(*_inputs()), model(*_inputs()))
    if grad:
        ours, expected = (_gradients(f, model, *_inputs()) for f in (compiled, model))
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4, msg=name)
