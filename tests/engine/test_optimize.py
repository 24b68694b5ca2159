"""fastdiff.optimize: the same results, the same parameters, and a model that is left as it was."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.models import ClassifierConfig, UNet, UNetConfig, build_model

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SMALL: dict[str, Any] = dict(
    image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)
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


def _model(**options: Any) -> UNet:
    """Small and random, also where layers start at zero."""
    model = build_model(UNetConfig(**{**SMALL, **options}))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        fan_in = p[0].numel() if p.dim() > 1 else 25
        p.data = p.data * (p.dim() == 1) + torch.randn(p.shape, generator=generator) / fan_in**0.5
    assert isinstance(model, UNet)
    return model.eval()


def _inputs(model: UNet, n: int = 2, h: int = 8, w: int = 8, dtype: torch.dtype = torch.float32) -> dict:
    g, config = torch.Generator().manual_seed(1), model.config
    x = torch.randn(n, config.in_channels, h, w, generator=g).contiguous(memory_format=torch.channels_last)
    inputs = {"x": x.to(dtype), "timesteps": 10.0 * torch.arange(n) + 3}
    if config.num_classes is not None:
        inputs["y"] = torch.arange(n) % 3
    if config.low_res is not None:
        inputs["low_res"] = torch.randn(n, config.in_channels, h // 2, w // 2, generator=g).to(dtype)
    return inputs


def _run(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**(inputs or _inputs(model)))


def _assert_close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # sums in another order


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def _assert_same(model: nn.Module, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert [k for k, v in state.items() if not torch.equal(v, weights[k])] == []


def _storage(model: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in model.parameters())


# Results


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_as_close_to_float64_as_the_plain_model(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = _model(**options).to(dtype)
    exact = copy.deepcopy(model).double()
    for n, h, w in ((1, 8, 8), (3, 8, 12)):
        inputs = _inputs(model, n, h, w, dtype)
        truth = _run(exact, **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
        plain = _run(model, **inputs)
        handle = fastdiff.optimize(model)
        got = _run(model, **inputs)
        handle.restore()
        assert got.dtype == plain.dtype and got.shape == plain.shape
        error, bound = ((r.double() - truth).abs().max().item() for r in (got, plain))
        floor = (8 if dtype == torch.float32 else 1) * torch.finfo(dtype).eps * truth.abs().max().item()
        assert error <= 2 * bound + floor, f"{n}x{h}x{w}: error {error:.3g}, the plain model's {bound:.3g}"


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16], ids=["own_f32", "own_bf16"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
def test_layout_and_dtype_follow_x(layout: Any, dtype: torch.dtype, own: torch.dtype) -> None:
    model = _model().to(own)
    inputs = _inputs(model)
    inputs["x"] = inputs["x"].contiguous(memory_format=layout)
    wanted = _run(model.float(), **inputs)
    fastdiff.optimize(model.to(own), dtype)
    for given in (torch.float32, torch.bfloat16):
        out = _run(model, **{**inputs, "x": inputs["x"].to(given)})
        assert out.dtype == given and out.is_contiguous(memory_format=layout)
        assert (out.float() - wanted).norm() < 0.05 * wanted.norm()


def test_half_trunk() -> None:
    model = _model().half_trunk(torch.bfloat16)
    wanted = _run(model)
    assert fastdiff.optimize(model).dtype == torch.bfloat16
    assert (_run(model) - wanted).norm() < 0.05 * wanted.norm()


def test_inference_mode_and_no_grad_give_the_same_bits() -> None:
    model = _model()
    fastdiff.optimize(model)
    with torch.inference_mode():
        inference = model(**_inputs(model))
    assert torch.equal(inference, _run(model))


# Where the plain model runs


def test_gradients_are_those_of_the_plain_model() -> None:
    model = _model()
    model(**_inputs(model)).square().sum().backward()
    wanted = [p.grad for p in model.parameters()]
    model.zero_grad()
    fastdiff.optimize(model)
    model(**_inputs(model)).square().sum().backward()
    assert all(
        w is not None and torch.equal(w, p.grad) for w, p in zip(wanted, model.parameters(), strict=True)
    )


def test_train_mode_drops_out() -> None:
    model = _model(dropout=0.5).train()
    torch.manual_seed(5)
    wanted = _run(model)
    fastdiff.optimize(model)
    torch.manual_seed(5)
    assert torch.equal(_run(model), wanted)
    assert (_run(model.eval()) - wanted).abs().max() > 0.01


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_forced_baseline_is_that_of_the_plain_model_to_the_bit(backend: str) -> None:
    model = _model()
    with use_backend(backend):
        wanted = _run(model)
        fastdiff.optimize(model)
        assert torch.equal(_run(model), wanted)


def test_float64_images_run_through_the_plain_model() -> None:
    model = _model().double()
    inputs = _inputs(model, dtype=torch.float64)
    wanted = _run(model, **inputs)
    fastdiff.optimize(model, torch.float32)
    assert torch.equal(_run(model, **inputs), wanted)


def test_compiles() -> None:
    model = _model(channel_mult=(1,), attention_resolutions=())
    fastdiff.optimize(model)
    wanted = _run(model)
    torch._dynamo.reset()
    # Not in one graph: whether a weight has changed is not the compiler's business.
    torch.testing.assert_close(_run(torch.compile(model, backend="aot_eager"), **_inputs(model)), wanted)


# Parameters


@pytest.mark.parametrize("free_weights", [False, True], ids=["kept", "freed"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_state_dict_is_the_same_to_the_bit(dtype: torch.dtype, free_weights: bool) -> None:
    model = _model().to(dtype)
    weights = _weights(model)
    handle = fastdiff.optimize(model, free_weights=free_weights)
    _assert_same(model, weights)
    _run(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())
    handle.restore()
    _assert_same(model, weights)
    assert "denoise" not in model.__dict__
    handle.restore()  # a second call does nothing


def test_freed_weights_take_no_memory_until_they_are_restored() -> None:
    model = _model()
    weights, before, wanted = _weights(model), _storage(model), _run(model)
    handle = fastdiff.optimize(model, free_weights=True)
    assert _storage(model) < 0.2 * before
    assert handle.freed_bytes == before - _storage(model)
    assert handle.extra_bytes == handle.packed_bytes - handle.freed_bytes
    _assert_close(_run(model), wanted)
    handle.restore()
    assert _storage(model) == before
    _assert_same(model, weights)
    assert handle.freed_bytes == 0
    assert torch.equal(_run(model), wanted)


def test_bytes_and_repr() -> None:
    model = _model(resblock_updown=False)
    handle = fastdiff.optimize(model, torch.bfloat16)
    assert handle.freed_bytes == 0 and handle.extra_bytes == handle.packed_bytes > 0
    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv1d)) and m.stride[0] == 1]
    text = f"UNet optimized for the CPU: {len(convolutions)} layers in bfloat16, {handle.extra_bytes / 2**20:.1f} MiB"
    assert repr(handle).startswith(text)


def test_loading_into_freed_weights() -> None:
    model, other = _model(), _model()
    for p in other.parameters():
        p.data = p.data * 1.5
    handle = fastdiff.optimize(model, free_weights=True)
    model.load_state_dict(other.state_dict())
    _assert_close(_run(model), _run(other))
    assert handle.freed_bytes == 0
    handle.restore()
    _assert_same(model, _weights(other))


def _in_place(model: UNet) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)


def _in_inference_mode(model: UNet) -> None:
    with torch.inference_mode():
        for p in model.parameters():
            p.mul_(1.5)


def _optimizer(model: UNet, kind: Any, **options: Any) -> None:
    optimizer = kind(model.parameters(), lr=0.02, **options)
    model(**_inputs(model)).square().mean().backward()
    optimizer.step()


def _assigned(model: UNet) -> None:
    model.load_state_dict({k: 1.5 * v for k, v in model.state_dict().items()}, assign=True)


def _replaced(model: UNet) -> None:
    layer: Any = model.out[2]
    layer.weight = nn.Parameter(2 * layer.weight.detach())


CHANGES = {
    "in_place": _in_place,
    "in_inference_mode": _in_inference_mode,
    "sgd": lambda model: _optimizer(model, torch.optim.SGD),
    "adam_foreach": lambda model: _optimizer(model, torch.optim.Adam, foreach=True),
    "adam_fused": lambda model: _optimizer(model, torch.optim.Adam, fused=True),
    "load_state_dict": lambda m: m.load_state_dict({k: 1.5 * v for k, v in m.state_dict().items()}),
    "load_state_dict_assign": _assigned,
    "replaced": _replaced,
}


@pytest.mark.parametrize("options", [{}, dict(resblock_updown=False)], ids=["", "strided"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_weight_is_noticed(change: Any, options: dict[str, Any]) -> None:
    model = _model(**options)
    handle = fastdiff.optimize(model)
    before = _run(model)
    change(model)
    got = _run(model)
    handle.restore()
    wanted = _run(model)
    assert (wanted - before).abs().max() > 0.01
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)  # larger weights


@pytest.mark.parametrize("free_weights", [False, True], ids=["kept", "freed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bf16", "f16", "f64"])
def test_another_dtype_is_noticed(dtype: torch.dtype, free_weights: bool) -> None:
    model = _model()
    converted = copy.deepcopy(model).to(dtype)
    handle = fastdiff.optimize(model, free_weights=free_weights)
    model.to(dtype)
    _assert_same(model, _weights(converted))
    got = _run(model)
    fastdiff.optimize(converted, torch.float32)
    assert torch.equal(got, _run(converted))
    handle.restore()
    _assert_same(model.float(), _weights(converted))


@pytest.mark.parametrize("options", [{}, dict(resblock_updown=False)], ids=["", "strided"])
@pytest.mark.parametrize("free_weights", [False, True], ids=["kept", "freed"])
def test_deepcopy_is_independent(free_weights: bool, options: dict[str, Any]) -> None:
    model = _model(**options)
    weights = _weights(model)
    handle = fastdiff.optimize(model, free_weights=free_weights)
    wanted = _run(model)
    other = copy.deepcopy(model)
    assert torch.equal(_run(other), wanted)
    _assert_same(other, weights)
    other.load_state_dict({k: 1.5 * v for k, v in weights.items()})
    assert (_run(other) - wanted).abs().max() > 0.01
    assert torch.equal(_run(model), wanted)
    handle.restore()
    _assert_same(model, weights)
    _assert_same(other, {k: 1.5 * v for k, v in weights.items()})


def test_a_whole_model_can_be_pickled_unless_it_is_freed() -> None:
    model, file = _model(resblock_updown=False), io.BytesIO()
    handle = fastdiff.optimize(model)
    wanted = _run(model)
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(_run(torch.load(file, weights_only=False)), wanted)
    handle.restore()
    fastdiff.optimize(model, free_weights=True)
    with pytest.raises(FastdiffError, match=r"restore\(\) it before pickling, or save its state_dict\(\)"):
        torch.save(model, io.BytesIO())


# Refusals


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        pytest.param(nn.Conv2d(3, 3, 3), {}, "takes a fastdiff U-Net, got Conv2d", id="module"),
        pytest.param(
            build_model(ClassifierConfig(image_size=8, model_channels=32, channel_mult=(1,), num_outputs=2)),
            {},
            "got Classifier",
            id="classifier",
        ),
        pytest.param(_model().to("meta"), {}, "on the CPU, this one is on meta", id="device"),
        pytest.param(
            _model(),
            {"dtype": torch.float64},
            "float32, .*bfloat16, .*float16, got torch.float64",
            id="float64",
        ),
        pytest.param(_model().double(), {}, "got torch.float64", id="own_float64"),
        pytest.param(
            _model(),
            {"dtype": torch.bfloat16, "free_weights": True},
            r"torch.float32: torch.bfloat16 would lose digits.*model.to\(torch.bfloat16\)",
            id="freed_in_another_dtype",
        ),
    ],
)
def test_refuses(model: nn.Module, options: dict[str, Any], says: str) -> None:
    with pytest.raises(FastdiffError, match=says):
        fastdiff.optimize(model, **options)
    assert "denoise" not in model.__dict__


def test_refuses_a_second_time() -> None:
    model = _model()
    handle = fastdiff.optimize(model)
    with pytest.raises(FastdiffError, match=r"optimized already; restore\(\) it first"):
        fastdiff.optimize(model)
    handle.restore()
    fastdiff.optimize(model)


def test_freed_weights_have_no_plain_model() -> None:
    model = _model()
    handle = fastdiff.optimize(model, free_weights=True)
    says = r"weights were freed by optimize\(\)"
    with pytest.raises(FastdiffError, match=says):
        model(**_inputs(model))
    with torch.no_grad():
        with pytest.raises(FastdiffError, match=says):
            model(**_inputs(model, dtype=torch.float64))
        with use_backend("eager"), pytest.raises(FastdiffError, match=says):
            model(**_inputs(model))
        with pytest.raises(FastdiffError, match=says):
            model.train()(**_inputs(model))
    handle.restore()
    assert model.eval()(**_inputs(model)).requires_grad


def test_the_same_mistakes_are_explained() -> None:
    model = _model()
    fastdiff.optimize(model)
    with torch.no_grad(), pytest.raises(FastdiffError, match="multiples of 2"):
        model(torch.zeros(1, 3, 7, 8), torch.zeros(1))


# Sampling


def _sample(model: UNet, n: int = 4, **options: Any) -> Tensor:
    diffusion = fastdiff.DiffusionConfig(
        prediction="v"
    )  # at the first step, a prediction of noise is enlarged 157-fold
    return fastdiff.sample(model, n, steps=3, diffusion=diffusion, progress=False, seed=3, **options)


def test_sampling_optimizes_and_leaves_the_model_as_it_was() -> None:
    model, seen = _model(), []
    model.out.register_forward_hook(lambda *_: seen.append("plain"))  # layers that the engine does not call
    fast = _sample(model)
    assert seen == [] and "denoise" not in model.__dict__
    plain = _sample(model, optimize=False)
    assert seen and "denoise" not in model.__dict__
    _assert_close(fast, plain)


def test_sampling_leaves_the_model_as_it_was_after_an_exception() -> None:
    model = _model()
    layer: Any = model.out[2]
    layer.bias.data.fill_(float("nan"))
    with pytest.raises(FastdiffError):
        _sample(model)
    assert "denoise" not in model.__dict__
    batches = fastdiff.sample_batches(
        _model(), 4, batch_size=2, steps=2, diffusion=fastdiff.DiffusionConfig(), progress=False
    )
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_sampling_keeps_an_optimized_model_optimized() -> None:
    model = _model()
    fastdiff.optimize(model, torch.bfloat16)
    denoise = model.__dict__["denoise"]
    _sample(model)
    assert model.__dict__["denoise"] is denoise


def test_sample_i_is_the_same_in_any_batch() -> None:
    model = _model(num_classes=3)
    classes = torch.arange(5) % 3
    whole = _sample(model, 5, classes=classes)
    for batch_size in (1, 2):
        _assert_close(_sample(model, 5, classes=classes, batch_size=batch_size), whole)
