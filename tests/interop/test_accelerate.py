"""diffusers' models before and after ``accelerate``: values, gradients, layouts, saving, and the way back."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.errors import FastdiffError

SMALL: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def _unet(**options: Any) -> Any:
    config = {
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 16,
        **SMALL,
    }
    return _random(diffusers.UNet2DModel(**config | options))


def _conditional(**options: Any) -> Any:
    config = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        **SMALL,
    }
    return _random(diffusers.UNet2DConditionModel(**config | options))


def _autoencoder() -> Any:
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "sample_size": 32,
        **SMALL,
    }
    return _random(diffusers.AutoencoderKL(**config))


def _random(model: nn.Module) -> Any:
    """No parameter is zero or one, so that every one of them shows in the output."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def _inputs(model: Any) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(1)
    if isinstance(model, diffusers.AutoencoderKL):
        return (torch.randn(2, 4, 8, 8, generator=g),)
    x = torch.randn(2, model.config.in_channels, 16, 16, generator=g)
    if isinstance(model, diffusers.UNet2DModel):
        return x, torch.tensor([3, 700])
    return x, torch.tensor([3, 700]), torch.randn(2, 7, 24, generator=g)


def _run(model: Any, inputs: tuple[Any, ...], **options: Any) -> Tensor:
    function = model.decode if isinstance(model, diffusers.AutoencoderKL) else model
    return function(*inputs, **options).sample


def _gradients(model: Any, inputs: tuple[Any, ...]) -> list[Tensor]:
    x = inputs[0].clone().requires_grad_()
    out = _run(model, (x, *inputs[1:]))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [g for g in torch.autograd.grad(out, leaves, weights, allow_unused=True) if g is not None]


MODELS = {
    "unet": _unet,
    "unet-scale_shift": lambda: _unet(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4),
    "unet-resampled_by_residual_blocks": lambda: _unet(downsample_type="resnet", upsample_type="resnet"),
    "unet-one_head": lambda: _unet(attention_head_dim=None),
    "conditional": _conditional,
    "conditional-linear": lambda: _conditional(use_linear_projection=True, attention_head_dim=(2, 4)),
    "autoencoder": _autoencoder,
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients(name: str, channels_last: bool) -> None:
    model = MODELS[name]()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    inputs = _inputs(model)
    with torch.no_grad():
        before = _run(model, inputs)
    gradients = _gradients(model, inputs)
    with fastdiff.accelerate(model) as handle:
        with torch.no_grad():
            torch.testing.assert_close(
                _run(model, inputs), before, rtol=1e-4, atol=1e-4 * float(before.abs().max())
            )
        after = _gradients(model, inputs)
        assert len(after) == len(gradients)
        for a, b in zip(after, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-6)
        assert handle.replaced and not handle.left
        norms = {n for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
        assert all(n in handle.replaced or n.rpartition(".")[0] in handle.replaced for n in norms)
    with torch.no_grad():
        assert torch.equal(_run(model, inputs), before)


def test_nothing_but_the_forward_changes(tmp_path) -> None:
    model = _unet()
    keys, config = list(model.state_dict()), dict(model.config)
    with fastdiff.accelerate(model):
        assert list(model.state_dict()) == keys and dict(model.config) == config
        model.save_pretrained(tmp_path)
        twin = copy.deepcopy(model)
        inputs = _inputs(model)
        with torch.no_grad():
            assert torch.equal(_run(twin, inputs), _run(model, inputs))
            nn.init.zeros_(twin.conv_out.weight)  # the copy runs on its own parameters
            assert not torch.equal(_run(twin, inputs), _run(model, inputs))
    again = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_training_step() -> None:
    """Dropout included: the same random stream drops the same elements."""
    losses = []
    for fast in (False, True):
        model = _unet(dropout=0.3).train()
        handle = fastdiff.accelerate(model) if fast else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.manual_seed(4)
        for _ in range(3):
            loss = _run(model, _inputs(model)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert handle is None or handle.replaced
    torch.testing.assert_close(losses[3:], losses[:3], rtol=1e-4, atol=1e-6)


def test_a_mask_goes_to_the_processor_that_was_there() -> None:
    model = _conditional()
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1], [1, 0, 1, 1, 1, 1, 1]])
    inputs = _inputs(model)
    with torch.no_grad():
        before = _run(model, inputs, encoder_attention_mask=mask)
        with fastdiff.accelerate(model):
            after = _run(model, inputs, encoder_attention_mask=mask)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_what_is_left_alone_is_told() -> None:
    model = _unet(act_fn="mish")
    inputs = _inputs(model)
    with torch.no_grad():
        before = _run(model, inputs)
        with fastdiff.accelerate(model) as handle:
            torch.testing.assert_close(_run(model, inputs), before, rtol=1e-4, atol=1e-4)
    assert "Mish" in next(iter(handle.left.values())) and "left alone" in str(handle)


def test_autocast_computes_norms_as_exactly() -> None:
    model = _unet()
    inputs = _inputs(model)
    with torch.no_grad():
        truth = _run(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            eager = _run(model, inputs)
            with fastdiff.accelerate(model):
                fast = _run(model, inputs)
    assert float((fast - truth).abs().mean()) <= 2 * float((eager - truth).abs().mean())


@pytest.mark.parametrize(
    ("pipeline", "scheduler"),
    [(diffusers.DDIMPipeline, diffusers.DDIMScheduler), (diffusers.DDPMPipeline, diffusers.DDPMScheduler)],
)
def test_a_pipeline(pipeline: Any, scheduler: Any, tmp_path) -> None:
    pipe = pipeline(unet=_unet(), scheduler=scheduler())
    pipe.set_progress_bar_config(disable=True)

    def images() -> Any:
        generator = torch.Generator().manual_seed(0)
        return torch.from_numpy(
            pipe(batch_size=2, num_inference_steps=4, generator=generator, output_type="np").images
        )

    before = images()
    own = pipe.scheduler
    with fastdiff.accelerate(pipe) as handle:
        assert pipe.scheduler is own and own.step.func.__module__.startswith("fastdiff.")
        torch.testing.assert_close(images(), before, rtol=1e-3, atol=1e-3)
        pipe.save_pretrained(tmp_path)
        assert f"{scheduler.__name__}: one pass a step" in str(handle)
    assert "step" not in vars(own) and torch.equal(images(), before)
    saved = json.loads((tmp_path / "model_index.json").read_text())
    assert saved["scheduler"] == ["diffusers", scheduler.__name__] and saved["unet"] == [
        "diffusers",
        "UNet2DModel",
    ]
    pipe = pipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(images(), before)


def test_another_scheduler_is_left_alone() -> None:
    pipe = diffusers.DDIMPipeline(unet=_unet(), scheduler=diffusers.DDIMScheduler())
    pipe.scheduler = diffusers.HeunDiscreteScheduler()
    with fastdiff.accelerate(pipe) as handle:
        assert "step" not in vars(pipe.scheduler) and "HeunDiscreteScheduler" in handle.left["scheduler"]


def test_options_that_a_pipeline_has_set_are_kept() -> None:
    """Stable Diffusion's turns off clipping and shifts the steps of a scheduler that it is given."""
    pipe = diffusers.DDIMPipeline(unet=_unet(), scheduler=diffusers.DDIMScheduler())
    pipe.scheduler._internal_dict = diffusers.configuration_utils.FrozenDict(
        {**pipe.scheduler.config, "clip_sample": False, "steps_offset": 1}
    )
    scheduler = pipe.scheduler
    x, m = 3 * torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(5)
    before = scheduler.step(m, 801, x).prev_sample
    with fastdiff.accelerate(pipe):
        assert pipe.scheduler.config.steps_offset == 1
        torch.testing.assert_close(pipe.scheduler.step(m, 801, x).prev_sample, before, rtol=1e-5, atol=1e-5)


def test_a_whole_model_is_pickled_and_compiled() -> None:
    model, file = _unet(), io.BytesIO()
    inputs = _inputs(model)
    fastdiff.accelerate(model)
    with torch.no_grad():
        wanted = _run(model, inputs)
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(_run(torch.load(file, weights_only=False), inputs), wanted)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(_run(compiled, inputs), wanted, rtol=1e-5, atol=1e-5)


class _Twice(diffusers.models.attention_processor.AttnProcessor):
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().__call__(*args, **kwargs)


def _with_processor(model: Any) -> None:
    model.mid_block.attentions[0].set_processor(_Twice())


def _with_activation(model: Any) -> None:
    model.conv_act = model.mid_block.resnets[0].nonlinearity = nn.GELU()


def _with_hook(name: str) -> Any:
    return lambda model: model.get_submodule(name).register_forward_hook(lambda *args: args[-1].abs())


CHANGES = {
    "processor": _with_processor,
    "activation": _with_activation,
    **{
        f"hook on {name}": _with_hook(f"mid_block.{name}")
        for name in ("resnets.0.norm1", "attentions.0.to_out.0")
    },
    "hook on conv_norm_out": _with_hook("conv_norm_out"),
    "hook on nonlinearity": _with_hook("down_blocks.0.resnets.0.nonlinearity"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_what_is_changed_later_counts(change: Any) -> None:
    model = _unet()
    inputs = _inputs(model)
    handle = fastdiff.accelerate(model)
    before = _run(model, inputs)
    change(model)
    got = _run(model, inputs)
    handle.restore()
    wanted = _run(model, inputs)
    assert (wanted - before).abs().max() > 1e-3 * before.abs().max()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_default_processors_can_be_asked_for() -> None:
    model = _conditional()
    with fastdiff.accelerate(model):
        model.set_default_attn_processor()
        model.set_attn_processor(model.attn_processors)


def test_mistakes_are_told() -> None:
    model = _unet()
    with fastdiff.accelerate(model), pytest.raises(FastdiffError, match="already"):
        fastdiff.accelerate(model)
    with pytest.raises(FastdiffError, match="no layer"):
        fastdiff.accelerate(nn.Linear(2, 2))
    with pytest.raises(FastdiffError, match="pipeline or a model"):
        fastdiff.accelerate("model")
