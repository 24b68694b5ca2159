"""fastdiff.optimize: the same results, refusals, and sampling with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DTYPES, VARIANTS, assert_close, inputs_of, run, small_model
from torch import Tensor, nn

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.inference.packed import PackedConv, is_freed
from fastdiff.inference.trunk import FusedTrunk
from fastdiff.models import ClassifierConfig, UNet, build_model

# Results


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_as_close_to_float64_as_the_plain_model(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = small_model(**options).to(dtype)
    exact = copy.deepcopy(model).double()
    for n, h, w in ((1, 8, 8), (3, 8, 12)):
        inputs = inputs_of(model, n, h, w, dtype)
        truth = run(exact, **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
        plain = run(model, **inputs)
        handle = fastdiff.optimize(model)
        got = run(model, **inputs)
        handle.restore()
        assert got.dtype == plain.dtype and got.shape == plain.shape
        error, bound = ((r.double() - truth).abs().max().item() for r in (got, plain))
        floor = (8 if dtype == torch.float32 else 1) * torch.finfo(dtype).eps * truth.abs().max().item()
        assert error <= 2 * bound + floor, f"{n}x{h}x{w}: error {error:.3g}, the plain model's {bound:.3g}"


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16], ids=["own_f32", "own_bf16"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
def test_layout_and_dtype_follow_x(layout: Any, dtype: torch.dtype, own: torch.dtype) -> None:
    model = small_model().to(own)
    inputs = inputs_of(model)
    inputs["x"] = inputs["x"].contiguous(memory_format=layout)
    wanted = run(model.float(), **inputs)
    fastdiff.optimize(model.to(own), dtype)
    for given in (torch.float32, torch.bfloat16):
        out = run(model, **{**inputs, "x": inputs["x"].to(given)})
        assert out.dtype == given and out.is_contiguous(memory_format=layout)
        assert (out.float() - wanted).norm() < 0.05 * wanted.norm()


def test_half_trunk() -> None:
    model = small_model().half_trunk(torch.bfloat16)
    wanted = run(model)
    assert fastdiff.optimize(model).dtype == torch.bfloat16
    assert (run(model) - wanted).norm() < 0.05 * wanted.norm()


def test_inference_mode_and_no_grad_give_the_same_bits() -> None:
    model = small_model()
    fastdiff.optimize(model)
    with torch.inference_mode():
        inference = model(**inputs_of(model))
    assert torch.equal(inference, run(model))


# Where the plain model runs


def test_gradients_are_those_of_the_plain_model() -> None:
    model = small_model()
    model(**inputs_of(model)).square().sum().backward()
    wanted = [p.grad for p in model.parameters()]
    model.zero_grad()
    fastdiff.optimize(model)
    model(**inputs_of(model)).square().sum().backward()
    assert all(
        w is not None and torch.equal(w, p.grad) for w, p in zip(wanted, model.parameters(), strict=True)
    )


def test_train_mode_drops_out() -> None:
    model = small_model(dropout=0.5).train()
    torch.manual_seed(5)
    wanted = run(model)
    fastdiff.optimize(model)
    torch.manual_seed(5)
    assert torch.equal(run(model), wanted)
    assert (run(model.eval()) - wanted).abs().max() > 0.01


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_forced_baseline_is_that_of_the_plain_model_to_the_bit(backend: str) -> None:
    model = small_model()
    with use_backend(backend):
        wanted = run(model)
        fastdiff.optimize(model)
        assert torch.equal(run(model), wanted)


def test_float64_images_run_through_the_plain_model() -> None:
    model = small_model().double()
    inputs = inputs_of(model, dtype=torch.float64)
    wanted = run(model, **inputs)
    fastdiff.optimize(model, torch.float32)
    assert torch.equal(run(model, **inputs), wanted)


def test_compiles() -> None:
    model = small_model(channel_mult=(1,), attention_resolutions=())
    fastdiff.optimize(model)
    wanted = run(model)
    torch._dynamo.reset()
    # Not in one graph: whether a weight has changed is not the compiler's business.
    torch.testing.assert_close(run(torch.compile(model, backend="aot_eager"), **inputs_of(model)), wanted)


# Refusals


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        pytest.param(nn.Conv2d(3, 3, 3), {}, "got Conv2d", id="module"),
        pytest.param(
            build_model(ClassifierConfig(image_size=8, model_channels=32, channel_mult=(1,), num_outputs=2)),
            {},
            "got Classifier",
            id="classifier",
        ),
        pytest.param(small_model().to("meta"), {}, "on the CPU, this one is on meta", id="device"),
        pytest.param(
            small_model(),
            {"dtype": torch.float64},
            "float32, .*bfloat16, .*float16, got torch.float64",
            id="float64",
        ),
        pytest.param(small_model().double(), {}, "got torch.float64", id="own_float64"),
        pytest.param(
            small_model(),
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
    model = small_model()
    handle = fastdiff.optimize(model)
    with pytest.raises(FastdiffError, match=r"optimized already; restore\(\) it first"):
        fastdiff.optimize(model)
    handle.restore()
    fastdiff.optimize(model)


def test_freed_weights_have_no_plain_model() -> None:
    model = small_model()
    handle = fastdiff.optimize(model, free_weights=True)
    says = r"weights were freed by optimize\(\)"
    with pytest.raises(FastdiffError, match=says):
        model(**inputs_of(model))
    with torch.no_grad():
        with pytest.raises(FastdiffError, match=says):
            model(**inputs_of(model, dtype=torch.float64))
        with use_backend("eager"), pytest.raises(FastdiffError, match=says):
            model(**inputs_of(model))
        with pytest.raises(FastdiffError, match=says):
            model.train()(**inputs_of(model))
    handle.restore()
    assert model.eval()(**inputs_of(model)).requires_grad


def test_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never are all of them there twice; they are packed once."""
    model, counts = small_model(), []
    make = PackedConv._make
    weights = {id(p): p for p in model.parameters()}

    def counting(self: PackedConv) -> None:
        make(self)
        counts.append(sum(is_freed(p) for p in weights.values()))

    monkeypatch.setattr(PackedConv, "_make", counting)
    handle = fastdiff.optimize(model, free_weights=True)
    layers = [len(p.layers) for p in handle._fused.packed() if isinstance(p, PackedConv)]
    assert counts == [sum(layers[:i]) for i in range(len(layers))]
    run(model)
    assert len(counts) == len(layers)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_freed_weights_let_go_of_their_file(tmp_path: Path) -> None:
    """A .safetensors file is mapped into memory for as long as any tensor of it is there."""
    file = tmp_path / "mapped.safetensors"
    fastdiff.save(small_model(), file)
    model = fastdiff.load(file)
    assert str(file) in Path("/proc/self/maps").read_text()
    fastdiff.optimize(model, free_weights=True)
    assert str(file) not in Path("/proc/self/maps").read_text()
    wanted = run(fastdiff.load(file))
    assert_close(run(model), wanted)


def test_the_same_mistakes_are_explained() -> None:
    model = small_model()
    fastdiff.optimize(model)
    with torch.no_grad(), pytest.raises(FastdiffError, match="multiples of 2"):
        model(torch.zeros(1, 3, 7, 8), torch.zeros(1))


# Sampling


def _sample(model: UNet, n: int = 4, **options: Any) -> Tensor:
    # With prediction "epsilon", the first step would enlarge the model's output 157-fold.
    diffusion = fastdiff.DiffusionConfig(prediction="v")
    return fastdiff.sample(model, n, steps=3, diffusion=diffusion, progress=False, seed=3, **options)


def test_sampling_optimizes_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = small_model(), []
    before, run = dict(vars(model)), FusedTrunk.run
    monkeypatch.setattr(
        FusedTrunk, "run", lambda *args: (calls.append(dict(vars(model)) == before), run(*args))[1]
    )
    fast = _sample(model)
    assert calls == [True] * 3
    plain = _sample(model, optimize=False)
    assert calls == [True] * 3 and vars(model) == before
    assert_close(fast, plain)


def test_sampling_leaves_the_model_as_it_was_after_an_exception() -> None:
    model = small_model()
    layer: Any = model.out[2]
    layer.bias.data.fill_(float("nan"))
    with pytest.raises(FastdiffError):
        _sample(model)
    assert "denoise" not in model.__dict__
    batches = fastdiff.sample_batches(
        small_model(), 4, batch_size=2, steps=2, diffusion=fastdiff.DiffusionConfig(), progress=False
    )
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_sampling_keeps_an_optimized_model_optimized() -> None:
    model = small_model()
    fastdiff.optimize(model, torch.bfloat16)
    denoise = model.__dict__["denoise"]
    _sample(model)
    assert model.__dict__["denoise"] is denoise


def test_sample_i_is_the_same_in_any_batch() -> None:
    model = small_model(num_classes=3)
    classes = torch.arange(5) % 3
    whole = _sample(model, 5, classes=classes)
    for batch_size in (1, 2):
        assert_close(_sample(model, 5, classes=classes, batch_size=batch_size), whole)
