"""diffusers' UNet2DModel, optimized: values option by option, what stays as it was, what is refused."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers_unets import BASE, CONFIGS, inputs_of, random_unet
from torch import Tensor, nn

import fastdiff
from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

FLOORS = {torch.float32: 8 * torch.finfo(torch.float32).eps}


def _to(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def _plain(model: Any, inputs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """diffusers' own result. The sines of the timestep are float32 there, whatever the dtype."""
    model = copy.deepcopy(model).to(dtype)
    if model.config.class_embed_type == "timestep":  # where it forgets to cast them
        model.time_proj.register_forward_hook(lambda *args: args[2].to(dtype))
    return model(**_to(inputs, dtype)).sample


def _error(output: Tensor, truth: Tensor) -> float:
    return float((output.double() - truth).abs().max())


@torch.no_grad()
def _check_values(model: Any, inputs: dict[str, Tensor]) -> None:
    """In the model's dtype: at most twice as far from float64 as diffusers itself, plus a floor."""
    dtype = model.dtype
    inputs = _to(inputs, dtype)
    truth, plain = _plain(model, inputs, torch.float64), _plain(model, inputs, dtype)
    fastdiff.optimize(model)
    output = model(**inputs).sample
    assert output.dtype == plain.dtype and output.shape == plain.shape
    if model.config.in_channels > 1:  # an image of one channel is in either layout
        assert output.is_contiguous()
    floor = FLOORS.get(dtype, torch.finfo(dtype).eps) * max(1.0, float(truth.abs().max()))
    assert truth.std() > 1e-3
    assert _error(output, truth) <= 2 * _error(plain, truth) + floor


@pytest.mark.parametrize("name", CONFIGS)
def test_values_in_float32(name: str) -> None:
    model = random_unet(name)
    _check_values(model, inputs_of(model))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 36), (8, 12)])
def test_sizes(height: int, width: int) -> None:
    """Down to a middle of a single pixel."""
    model = random_unet("deep")
    _check_values(model, inputs_of(model, height, width))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", ["base", "ddpm", "scale_shift", "sampling_by_resnets", "middle_scaled", "fourier", "class_times"]
)
def test_values_in_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    model = random_unet(name)
    _check_values(model.to(dtype), inputs_of(model))


@torch.no_grad()
def test_packed_in_another_dtype() -> None:
    """The model's dtype goes in and comes out; between, it is bfloat16."""
    model = random_unet()
    inputs = inputs_of(model)
    truth, plain = _plain(model, inputs, torch.float64), _plain(model, inputs, torch.bfloat16)
    fastdiff.optimize(model, torch.bfloat16)
    output = model(**inputs).sample
    assert output.dtype == torch.float32
    assert 1e-5 < _error(output, truth) <= 2 * _error(plain, truth)


STEPS = [7, 7.9, torch.tensor(7), torch.tensor([7]), torch.tensor(7.5), torch.tensor([7, 300])]


@pytest.mark.parametrize("step", STEPS, ids=str)
@torch.inference_mode()
def test_ways_to_give_the_timestep(step: Any) -> None:
    model, x = random_unet(), torch.randn(2, 3, 16, 16)
    expected = model(x, step).sample
    fastdiff.optimize(model)
    for output in (
        model(x, step).sample,
        model(sample=x, timestep=step, return_dict=False)[0],
        model(x.contiguous(memory_format=torch.channels_last), step, None, True)["sample"],
    ):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_output_and_signature_are_those_of_diffusers() -> None:
    model, x = random_unet(), torch.randn(1, 3, 16, 16)
    signature = list(inspect.signature(model.forward).parameters)
    fastdiff.optimize(model)
    assert list(inspect.signature(model.forward).parameters) == signature
    with torch.no_grad():
        assert type(model(x, 1)) is diffusers.models.unets.unet_2d.UNet2DOutput
        assert type(model(x, 1, return_dict=False)) is tuple


@pytest.mark.parametrize("scheduler", ["DDPM", "DDIM"])
def test_inside_a_pipeline(scheduler: str) -> None:
    model = random_unet("ddpm")
    schedule = getattr(diffusers, f"{scheduler}Scheduler")()
    pipeline = getattr(diffusers, f"{scheduler}Pipeline")(model, schedule)
    pipeline.set_progress_bar_config(disable=True)

    def images() -> Tensor:
        generator = torch.Generator().manual_seed(1)
        output = pipeline(batch_size=2, generator=generator, num_inference_steps=3, output_type="np")
        return torch.from_numpy(output.images)

    before = images()
    with _optimized(model) as calls:
        after = images()
    assert len(calls) == 3
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)


def test_everything_else_stays(tmp_path) -> None:
    model = random_unet()
    state, config = copy.deepcopy(model.state_dict()), dict(model.config)
    names = [name for name, _ in model.named_modules()]
    handle = fastdiff.optimize(model)
    assert isinstance(model, diffusers.UNet2DModel) and dict(model.config) == config
    assert [name for name, _ in model.named_modules()] == names
    _assert_equal(model.state_dict(), state)
    model.save_pretrained(tmp_path)
    _assert_equal(diffusers.UNet2DModel.from_pretrained(tmp_path).state_dict(), state)
    handle.restore()
    handle.restore()
    assert "forward" not in model.__dict__
    _assert_equal(model.state_dict(), state)


def test_plain_where_it_must_be() -> None:
    """Gradients, training, float64 and a backend wanted for comparison: to the bit what diffusers does."""
    model, plain = random_unet(), random_unet()
    x = torch.randn(1, 3, 16, 16)
    with _optimized(model) as calls:
        assert torch.equal(model(x, 5).sample, plain(x, 5).sample)
        model(x, 5).sample.sum().backward()
        assert model.conv_in.weight.grad is not None
        with torch.no_grad():
            with use_backend("eager"):
                assert torch.equal(model(x, 5).sample, plain(x, 5).sample)
            assert torch.equal(model.train()(x, 5).sample, plain.train()(x, 5).sample)
            exact = model.eval().double()(x.double(), 5).sample
            assert torch.equal(exact, plain.eval().double()(x.double(), 5).sample)
        assert not calls


@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    model, other, x = random_unet(), random_unet(), torch.randn(1, 3, 16, 16)
    fastdiff.optimize(model)
    before = model(x, 5).sample
    for assign in (False, True):
        for parameter in other.parameters():
            parameter.mul_(0.9)
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        torch.testing.assert_close(model(x, 5).sample, other(x, 5).sample, rtol=1e-4, atol=1e-5)
    model.mid_block.attentions[0].to_v.bias.add_(1)
    assert (model(x, 5).sample - before).abs().max() > 1e-3
    other.mid_block.attentions[0].to_v.bias.add_(1)
    torch.testing.assert_close(model(x, 5).sample, other(x, 5).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_freed_weights_come_back(tmp_path) -> None:
    model, x = random_unet("ddpm"), torch.randn(1, 3, 16, 16)
    state = copy.deepcopy(model.state_dict())
    handle = fastdiff.optimize(model)
    expected = model(x, 5).sample
    handle.restore()
    handle = fastdiff.optimize(model, free_weights=True)
    assert torch.equal(model(x, 5).sample, expected)
    assert handle.freed_bytes > 0.8 * sum(p.nbytes for p in state.values())
    _assert_equal(model.state_dict(), state)
    model.save_pretrained(tmp_path)
    _assert_equal(diffusers.UNet2DModel.from_pretrained(tmp_path).state_dict(), state)
    with torch.enable_grad(), pytest.raises(FastdiffError, match="freed"):
        model(x, 5)
    halved = {key: value / 2 for key, value in state.items()}
    model.mid_block.attentions[0].to_k.load_state_dict(
        {"weight": halved["mid_block.attentions.0.to_k.weight"], "bias": torch.zeros(64)}
    )
    model.load_state_dict(halved)
    _assert_equal(model.state_dict(), halved)
    handle.restore()
    _assert_equal(model.state_dict(), halved)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "down_block": (
        {"down_block_types": ("SkipDownBlock2D", "AttnDownBlock2D")},
        "the block type SkipDownBlock2D",
    ),
    "up_block": ({"up_block_types": ("AttnUpBlock2D", "SkipUpBlock2D")}, "the block type SkipUpBlock2D"),
    "cross_attention": (
        {"down_block_types": ("DownBlock2D", "KDownBlock2D")},
        "the block type KDownBlock2D",
    ),
    "activation": ({"act_fn": "mish"}, "the activation Mish: act_fn must be 'silu' or 'swish'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    options, message = REFUSED[name]
    model = diffusers.UNet2DModel(**{**BASE, "norm_num_groups": 32, **options}).eval()
    _assert_refused(model, message)


def _custom_processor(model: Any) -> None:
    class Mine(diffusers.models.attention_processor.AttnProcessor):
        pass

    model.mid_block.attentions[0].set_processor(Mine())


def _change(path: str, attribute: str, value: Any) -> Any:
    return lambda model: setattr(model.get_submodule(path), attribute, value)


CHANGES = {
    "processor": (_custom_processor, "the attention processor Mine"),
    "norm_q": (_change("mid_block.attentions.0", "norm_q", nn.Identity()), "attention with norm_q"),
    "cross": (_change("mid_block.attentions.0", "is_cross_attention", True), "cross-attention"),
    "circular": (_change("conv_in", "padding_mode", "circular"), "the convolution Conv2d"),
    "linear": (
        _change("mid_block.attentions.0", "to_q", nn.Conv1d(64, 64, 1)),
        "Conv1d in the place of a linear layer",
    ),
    "norm": (_change("", "conv_norm_out", nn.BatchNorm2d(32)), "BatchNorm2d in the place of a group norm"),
    "time_act": (_change("mid_block.resnets.0", "skip_time_act", True), "skip_time_act=True"),
    "spatial": (
        _change("mid_block.resnets.0", "time_embedding_norm", "spatial"),
        "resnet_time_scale_shift='spatial'",
    ),
    "padding": (_change("down_blocks.0.downsamplers.0", "padding", 2), "downsample_padding=2"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_layers_are_refused_by_name(name: str) -> None:
    change, message = CHANGES[name]
    model = random_unet()
    change(model)
    _assert_refused(model, message)


def test_other_refusals() -> None:
    class Derived(diffusers.UNet2DModel):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    _assert_refused(Derived(**BASE), "a forward of its own")
    _assert_refused(nn.Linear(2, 2), "a fastdiff U-Net or diffusers' UNet2DModel, got Linear")
    _assert_refused(random_unet().double(), "dtype must be one of")
    model = random_unet()
    handle = fastdiff.optimize(model)
    with pytest.raises(FastdiffError, match="optimized already"):
        fastdiff.optimize(model)
    handle.restore()
    model.forward = lambda *_: None
    with pytest.raises(FastdiffError, match="something else has taken the place of this model's forward"):
        fastdiff.optimize(model)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        ("base", {"sample": torch.zeros(1, 4, 16, 16)}, r"\[N, 3, H, W\], got \[1, 4, 16, 16\]"),
        ("base", {"sample": torch.zeros(1, 3, 16, 15)}, "multiples of 2"),
        ("base", {"sample": torch.zeros(1, 3, 16, 16, dtype=torch.int64)}, "floating-point"),
        ("base", {"class_labels": torch.tensor([1])}, "leave out class_labels"),
        ("classes", {}, "give class_labels"),
    ],
)
def test_wrong_inputs(config: str, inputs: dict[str, Tensor], message: str) -> None:
    model = random_unet(config)
    fastdiff.optimize(model)
    with pytest.raises(FastdiffError, match=message):
        model(**{"sample": torch.zeros(1, 3, 16, 16), "timestep": 3, **inputs})


@contextlib.contextmanager
def _optimized(model: Any) -> Iterator[list[Any]]:
    """Optimized inside; the list grows by one with each call that runs on the fused layers."""
    calls: list[Any] = []
    handle = fastdiff.optimize(model)
    run = model.forward.run
    model.forward.run = lambda *args: (calls.append(args), run(*args))[1]
    yield calls
    handle.restore()


def _assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def _assert_refused(model: Any, message: str) -> None:
    before = dict(model.__dict__)
    with pytest.raises(FastdiffError, match=re.escape(message)):
        fastdiff.optimize(model)
    assert model.__dict__ == before
