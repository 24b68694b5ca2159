"""Sampling as a user calls it: seeds, classes, guidance, batches, and what happens to mistakes."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from rounding import assert_same_to_rounding
from torch import Tensor, nn

from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.ops.philox import sample_seeds
from fastdiff.sampling import Sampler, encode, sample, sample_batches, to_uint8
from fastdiff.sampling.loop import run
from fastdiff.sampling.request import RequestArguments
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS, sampling_plan


class SmallModel(nn.Module):
    """A convolution whose bias depends on the time and the class; the last label means "no class"."""

    diffusion = DiffusionConfig(variance="learned_range")

    def __init__(self, num_classes: int | None = 5, null_label: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=8, in_channels=3, num_classes=num_classes)
        self.null_class = num_classes if null_label else None
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.label = nn.Embedding((num_classes or 0) + 1, 6)
        self.dropout = nn.Dropout(0.5)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.append((x, t, y))
        bias = (t / 1000).to(self.conv.weight.dtype)[:, None] - 0.5
        bias = bias if y is None else bias + self.label(y)
        return self.dropout(self.conv(x)) + bias[:, :, None, None]


class EmbeddingModel(SmallModel):
    """The same in two parts, as fastdiff's own U-Net offers them."""

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        bias = (t / 1000)[:, None] - 0.5
        return bias.expand(-1, 6) if y is None else bias + self.label(y)

    def denoise(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.dropout(self.conv(x)) + embedding[:, :, None, None]


def draw(model, n: int = 8, **options) -> Tensor:
    return sample(model, n, progress=False, **{"sampler": "ddim", "steps": 4, **options})


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
@pytest.mark.parametrize("guidance_scale", [None, 2.0])
def test_sample_i_is_the_same_in_any_batch(sampler, guidance_scale) -> None:
    model, classes = EmbeddingModel(), torch.arange(8) % 5
    options = dict(sampler=sampler, classes=classes, seed=11, guidance_scale=guidance_scale)
    ways = [{"batch_size": size} for size in (8, 1, 3)]
    whole = assert_same_to_rounding(partial(draw, **options), model, ways, n=8, seed=11)
    assert whole.shape == (8, 3, 8, 8)
    assert whole.dtype == torch.float32
    assert whole.abs().max() <= 1 + 1e-6
    assert (draw(model, **{**options, "seed": 12}) - whole).abs().max() > 0.1


def test_noise_depends_on_the_sample_and_nothing_else() -> None:
    """x_T bit for bit, for batches of 1, 3 and 8 and for seeds given one by one."""
    model = SmallModel()

    def first_inputs(**options) -> Tensor:
        model.seen.clear()
        draw(model, steps=1, **options)
        return torch.cat([x for x, _, _ in model.seen])

    whole = first_inputs(seed=3)
    for batch_size in (1, 3, 8):
        assert torch.equal(first_inputs(seed=3, batch_size=batch_size), whole)
    assert torch.equal(first_inputs(seeds=[(3 << 32) | i for i in range(8)]), whole)
    assert torch.equal(first_inputs(seeds=sample_seeds(8, 3), n=8), whole)


def test_seeds_use_all_64_bits() -> None:
    assert sample_seeds(3, 2).tolist() == [2 << 32, (2 << 32) + 1, (2 << 32) + 2]
    top = sample_seeds(2, 0xFFFFFFFF)
    assert [int(s) % (1 << 64) for s in top] == [0xFFFFFFFF << 32, (0xFFFFFFFF << 32) + 1]
    assert sample_seeds(2, 5, first=7).tolist() == sample_seeds(9, 5)[7:].tolist()


@pytest.mark.parametrize(
    ("classes", "guidance_scale"), [(None, None), (3, None), (3, 1.7), ([0, 1, 2, 3, 4, 4, 0, 3], 1.7)]
)
def test_embedding_ahead_changes_nothing(classes, guidance_scale) -> None:
    options = dict(classes=classes, guidance_scale=guidance_scale, sampler="ancestral")
    torch.testing.assert_close(draw(EmbeddingModel(), **options), draw(SmallModel(), **options))


def test_many_embeddings_are_made_step_by_step(monkeypatch) -> None:
    expected = draw(EmbeddingModel(), classes=2)
    monkeypatch.setattr("fastdiff.sampling.denoiser.MAX_EMBEDDINGS", 3)
    torch.testing.assert_close(draw(EmbeddingModel(), classes=2), expected)


def test_guidance_extrapolates_from_the_null_class() -> None:
    """w = 1 is the class, w = 0 the null class; the model runs once a step on both."""
    model = SmallModel()
    conditional, unconditional = draw(model, classes=2), draw(model)
    model.seen.clear()
    torch.testing.assert_close(draw(model, classes=2, guidance_scale=1.0), conditional)
    x, _, y = model.seen[0]
    assert y is not None and y.tolist() == [2] * 8 + [5] * 8
    assert torch.equal(x[:8], x[8:])
    assert len(model.seen) == 4
    torch.testing.assert_close(draw(model, classes=2, guidance_scale=0.0), unconditional)
    assert (draw(model, classes=2, guidance_scale=4.0) - conditional).abs().max() > 0.05


def test_times_are_whole_where_they_can_be() -> None:
    model = SmallModel()
    draw(model, steps="ddim4")
    assert [t.tolist() for _, t, _ in model.seen] == [[i] * 8 for i in (750, 500, 250, 0)]
    assert model.seen[0][1].dtype == torch.int64
    model.seen.clear()
    draw(model, sampler="dpmpp")
    assert model.seen[0][1].dtype == torch.float32


def test_model_dtype_layout_and_mode() -> None:
    model = SmallModel().bfloat16().train()
    out = draw(model, 4)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert all(x.dtype == torch.bfloat16 for x, _, _ in model.seen)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _, _ in model.seen)
    assert torch.equal(out, draw(model, 4))  # no dropout while sampling,
    assert model.training  # and back to training afterwards
    model.seen.clear()
    draw(model, 4, memory_format=torch.contiguous_format)
    assert model.seen[0][0].is_contiguous()


def test_a_mixed_precision_model_casts_by_itself() -> None:
    class Mixed(SmallModel):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            assert x.dtype == torch.float32
            return super().forward(x.to(self.conv.weight.dtype), t, y)

    model = Mixed()
    model.conv.bfloat16()
    draw(model, 2)


def test_samples_can_be_trained_on() -> None:
    weight = torch.ones(1, requires_grad=True)
    (draw(SmallModel(), 2) * weight).sum().backward()
    assert weight.grad is not None


def test_other_conditioning_is_cut_into_batches() -> None:
    seen = []

    def model(x: Tensor, t: Tensor, low_res: Tensor) -> Tensor:
        seen.append(low_res)
        return x - low_res

    low_res = torch.arange(5.0).reshape(5, 1, 1)
    options = dict(shape=(1, 2), steps=1, diffusion=DiffusionConfig(), cond={"low_res": low_res})
    out = draw(model, 5, batch_size=2, **options)
    assert [v.flatten().tolist() for v in seen] == [[0, 1], [2, 3], [4]]
    assert out.shape == (5, 1, 2)


def test_batches_come_one_by_one() -> None:
    model = SmallModel()
    finished = sample_batches(model, 5, batch_size=2, steps=3, progress=False)
    assert next(finished).shape[0] == 2
    assert len(model.seen) == 3  # nothing runs ahead
    assert [len(batch) for batch in finished] == [2, 1]


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_ancestral_is_the_textbook_loop(variance) -> None:
    """With the noise given step by step, as existing code draws it, clipping included."""
    diffusion = GaussianDiffusion(DiffusionConfig(steps=50, variance=variance))
    noise = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([0.3 * x, -x.abs()], 1) if diffusion.config.learns_variance else 0.3 * x

    plan = sampling_plan(diffusion, sampler="ancestral", steps=5)
    out = run(plan, model, noise[5], step_noise=lambda step, x: noise[step])
    short, x = diffusion.respaced(5), noise[5]
    for step in range(5):
        t = torch.full((2,), 4 - step)
        moments = short.p_mean_variance(model, x, t)
        x = moments.mean + (4 - step > 0) * torch.exp(0.5 * moments.log_variance) * noise[step]
    torch.testing.assert_close(out, x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_is_the_textbook_loop(eta) -> None:
    """The direction is derived again from the clipped x_0, as in ADM."""
    diffusion = GaussianDiffusion(DiffusionConfig(steps=50))
    noise = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    plan = sampling_plan(diffusion, sampler="ddim", steps=5, eta=eta)
    out = run(plan, lambda x, t: 0.3 * x, noise[5], step_noise=lambda step, x: noise[step])
    short, x, clipped = diffusion.respaced(5), noise[5], 0
    for step in range(5):
        t = torch.full((2,), 4 - step)
        a, s = short.alphas_bar[4 - step], short.alphas_bar_prev[4 - step]
        x0 = short.predict_x0(0.3 * x, x, t)
        clipped += int((x0.abs() > 1).sum())
        x0 = x0.clamp(-1, 1)
        std = eta * torch.sqrt((1 - s) / (1 - a)) * torch.sqrt(1 - a / s)
        direction = torch.sqrt(1 - s - std**2) * short.predict_epsilon(x0, x, t)
        x = s.sqrt() * x0 + direction + std * noise[step]
    assert clipped > 0
    torch.testing.assert_close(out, x, rtol=1e-9, atol=1e-10)


def test_progress_bar_counts_steps_of_all_batches(capsys) -> None:
    sample(SmallModel(), 3, batch_size=2, steps=3)
    assert "6/6" in capsys.readouterr().err


def test_to_uint8_truncates() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 0.999, 1.0, 3.0]).reshape(1, 7, 1, 1)
    pixels = to_uint8(x.expand(1, 7, 2, 3))
    assert pixels.shape == (1, 2, 3, 7)
    assert pixels.dtype == torch.uint8
    assert pixels[0, 1, 2].tolist() == [0, 0, 127, 191, 254, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_output_stops_with_the_step(bad) -> None:
    calls = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        out = torch.zeros_like(x)
        if len(calls) == 7:  # the third step of the second batch
            out[1, 0, 1] = bad
        return out

    options = dict(shape=(2, 2), steps=4, diffusion=DiffusionConfig(), batch_size=3)
    with pytest.raises(FastdiffError, match=r"NaN or Inf at step 3 of 4 \(timestep 333\) for sample 4; samp"):
        draw(model, 6, **options)
    assert len(calls) == 7


UNCONDITIONAL = {"num_classes": None, "null_label": False}
CLASS_ONLY = {"num_classes": 5, "null_label": False}


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        ({}, {"sampler": "tea"}, "unknown sampler 'tea'; known: ancestral, ddim, euler, euler_ancestral"),
        ({}, {"steps": 0}, "at least 1.* got 0"),
        ({}, {"steps": 1001}, "cannot take 1001 of 1000"),
        ({}, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({}, {"n": 0}, "number of samples must be a whole number of at least 1, got 0"),
        ({}, {"n": 2.0}, "got 2.0"),
        ({}, {"shape": (3, 0, 8)}, r"shape must be positive whole numbers .* got \(3, 0, 8\)"),
        ({}, {"classes": 5}, "class 5 is unknown to the model; it knows 0 to 4"),
        ({}, {"classes": [0, 1, -1, 2]}, "class -1 is unknown"),
        ({}, {"classes": [0, 1]}, r"one whole number or 4, one per sample, got torch.int64 \[2\]"),
        ({}, {"classes": [0.5] * 4}, "classes must be one whole number or 4"),
        ({}, {"classes": ["shirt"] * 4}, "classes must be .* got list"),
        (CLASS_ONLY, {}, "class-conditional: give classes, 0 to 4"),
        (UNCONDITIONAL, {"classes": 1}, "the model is unconditional; leave out classes"),
        (UNCONDITIONAL, {"guidance_scale": 2.0}, "guidance needs a model that was trained with a null class"),
        (CLASS_ONLY, {"guidance_scale": 2.0, "classes": 1}, "trained with a null class"),
        ({}, {"guidance_scale": 2.0}, "guidance needs classes to guide towards"),
        ({}, {"guidance_scale": float("nan"), "classes": 1}, "finite number, got nan"),
        ({}, {"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({}, {"seed": 1 << 32}, "seed must be"),
        ({}, {"seed": 1, "seeds": [1, 2, 3, 4]}, "either seed .* or seeds .* not both"),
        ({}, {"seeds": [1, 2]}, r"seeds must be 4 whole numbers, one per sample, got torch.int64 \[2\]"),
        ({}, {"seeds": [1 << 64] * 4}, "seeds must be 4 whole numbers, .* got list"),
        ({}, {"noise": torch.zeros(4, 3, 8, 9)}, r"must be floating point \[4, 3, 8, 8\], .*\[4, 3, 8, 9\]"),
        ({}, {"noise": torch.zeros(4, 3, 8, 8).long()}, "noise must be floating point"),
        ({}, {"cond": {"low_res": torch.zeros(3, 1)}}, "conditioning 'low_res' must be a tensor of 4 rows"),
        ({}, {"diffusion": "linear"}, "give diffusion="),
    ],
)
def test_errors(model, arguments, sentence) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        draw(SmallModel(**model), **{"n": 4, **arguments})


def test_errors_of_plain_callables() -> None:
    with pytest.raises(FastdiffError, match="how large its samples are; give shape="):
        draw(lambda x, t: x, diffusion=DiffusionConfig())
    with pytest.raises(FastdiffError, match="which diffusion it was trained with"):
        draw(lambda x, t: x, shape=(1,))
    with pytest.raises(
        FastdiffError, match=r"the model returned \[8, 3\] for x \[8, 1\]; 1 channels are acc"
    ):
        draw(lambda x, t: x.repeat(1, 3), shape=(1,), diffusion=DiffusionConfig())


def test_sample_batches_tells_mistakes_at_once() -> None:
    with pytest.raises(FastdiffError, match="class 9 is unknown"):
        sample_batches(SmallModel(), 4, classes=9)


def test_encode() -> None:
    model = EmbeddingModel()
    images = draw(model, 3, classes=1, steps=20)
    noise = encode(model, images, classes=1, steps=20, progress=False)
    assert noise.shape == images.shape
    for wrong in ({"sampler": "heun"}, {"eta": 1.0}, {"spacing": "karras"}):
        with pytest.raises(FastdiffError, match="encoding reverses sampler 'ddim'"):
            encode(model, images, classes=1, progress=False, **wrong)
    with pytest.raises(FastdiffError, match=r"must be floating point \[3, 3, 8, 8\]"):
        encode(model, images[:, :, :4], classes=1, progress=False)


def test_sampler_object_is_reusable() -> None:
    sampler = Sampler(SmallModel(), steps=4)
    first = sampler(2, seed=1, progress=False)
    assert torch.equal(sampler(2, seed=1, progress=False), first)
    torch.testing.assert_close(sampler(4, seed=1, progress=False)[:2], first)


@pytest.mark.parametrize("call", [Sampler.__call__, sample], ids=["Sampler", "sample"])
def test_public_calls_take_the_arguments_of_a_request(call) -> None:
    parameters = inspect.signature(call).parameters.values()
    own = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "progress"]
    assert own == [field.name for field in dataclasses.fields(RequestArguments)]
