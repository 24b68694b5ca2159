"""Conditions on image models: exact known pixels, no dependence on the batch, and what happens to mistakes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from rounding import assert_same_to_rounding
from test_api import EmbeddingModel, SmallModel
from torch import Tensor

import fastdiff
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.sampling import Condition, Denoise, Guide, Inpaint, denoise, inpaint, sample
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS

IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
MASK = torch.zeros(8, 8)
MASK[2:6, 3:] = 1
# Not the small model's own learned variance: it grows with x without bounds, and repeated steps make it explode.
FIXED = {"diffusion": DiffusionConfig(), "steps": 4, "progress": False}


def draw(model, n: int = 6, **options) -> Tensor:
    options = {"steps": 4, "classes": 2, "seed": 5, "progress": False} | options
    return sample(model, n, **options)


def class_gradient(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A noisy classifier in little: the log-probability of y among channel means, less sure at high t."""
    logits = x.mean((2, 3)) * (10 / (1 + t / 1000))[:, None].to(x.dtype)
    return logits.log_softmax(1).gather(1, y[:, None])[:, 0]


def conditions(n: int) -> dict[str, Condition]:
    rows = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    masks = (torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    return {
        "guide": Guide(class_gradient, 2.0, {"y": torch.arange(n) % 3}),
        "denoise": Denoise(rows, 0.7),
        "inpaint": Inpaint(rows, masks),
    }


@pytest.mark.parametrize("kind", ["guide", "denoise", "inpaint"])
@pytest.mark.parametrize("guidance_scale", [None, 2.0])
def test_sample_i_is_the_same_in_any_batch(kind, guidance_scale) -> None:
    model, condition = EmbeddingModel(), conditions(6)[kind]
    options = {"sampler": "ancestral", "condition": condition, "guidance_scale": guidance_scale}
    ways = [{"batch_size": size} for size in (6, 1, 4)]
    whole = assert_same_to_rounding(partial(draw, **options), model, ways, n=6, seed=5)
    assert whole.shape == (6, 3, 8, 8) and whole.dtype == torch.float32
    assert (draw(model, **options | {"condition": None}) - whole).abs().max() > 0.01


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
@pytest.mark.parametrize("guidance_scale", [None, 2.0])
def test_known_pixels_are_the_images_to_the_bit(sampler, guidance_scale) -> None:
    out = draw(
        EmbeddingModel(), sampler=sampler, guidance_scale=guidance_scale, condition=Inpaint(IMAGE, MASK)
    )
    assert torch.equal(out[:, :, MASK == 0], IMAGE[:, MASK == 0].expand(6, -1, -1))
    assert (out[0] - out[1]).abs().max() > 0.01  # and the completions differ
    assert out.isfinite().all()


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_a_guide_that_is_level_changes_nothing(sampler) -> None:
    """Learned variances and noise are those of reverse_step, whichever way the step is made."""
    model, nothing = SmallModel(), Guide(lambda x, t: 0 * x.sum((1, 2, 3)))
    plain, guided = draw(model, sampler=sampler), draw(model, sampler=sampler, condition=nothing)
    torch.testing.assert_close(guided, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp"])
def test_a_guide_moves_towards_what_it_rates(sampler) -> None:
    model, up = SmallModel(), Guide(lambda x, t: x[:, 0].sum((1, 2)), 0.3)
    moved = draw(model, sampler=sampler, condition=up) - draw(model, sampler=sampler)
    assert moved[:, 0].mean() > 0.01
    assert moved[:, 0].mean() > moved[:, 1:].mean()


def test_a_half_precision_model_and_the_layout() -> None:
    model = EmbeddingModel().bfloat16()
    for condition in conditions(6).values():
        out = draw(model, sampler="ancestral", condition=condition)
        assert out.dtype == torch.float32 and out.is_contiguous() and out.isfinite().all()


def test_works_inside_inference_mode_and_no_grad() -> None:
    model, condition = SmallModel(), conditions(6)["guide"]
    expected = draw(model, sampler="ancestral", condition=condition)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(draw(model, sampler="ancestral", condition=condition), expected)


def test_inpaint_completes_each_image_n_times() -> None:
    images = torch.stack([IMAGE, -IMAGE])
    masks = torch.stack([MASK, 1 - MASK])[:, None]
    out = inpaint(SmallModel(), images, masks, 3, classes=1, **FIXED)
    assert out.shape == (6, 3, 8, 8)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        assert torch.equal(out[3 * i : 3 * i + 3, :, mask[0] == 0], image[:, mask[0] == 0].expand(3, -1, -1))
    one = inpaint(SmallModel(), IMAGE, MASK.bool(), 3, classes=1, **FIXED)
    torch.testing.assert_close(one, out[:3], rtol=1e-4, atol=1e-5)


def test_repeated_steps() -> None:
    """Independent of the batch, another result than single steps, and as many times the calls."""
    options = {"classes": 1, "seed": 3, "optimize": False, **FIXED}
    thrice = partial(inpaint, image=IMAGE, mask=MASK, n=6, repeats=3, **options)
    ways = [{"batch_size": size} for size in (6, 1, 4)]
    whole = assert_same_to_rounding(thrice, SmallModel(), ways, n=6, seed=3)
    once = inpaint(SmallModel(), IMAGE, MASK, 6, repeats=1, **options)
    assert (once - whole).abs().max() > 0.01
    counted = SmallModel()
    inpaint(counted, IMAGE, MASK, repeats=3, **options)
    assert len(counted.seen) == 3 * 4
    default, deterministic = SmallModel(), SmallModel()
    inpaint(default, IMAGE, MASK, **options)
    inpaint(deterministic, IMAGE, MASK, sampler="ddim", **options)
    assert (len(default.seen), len(deterministic.seen)) == (5 * 4, 4)


def test_unknown_pixels_may_hold_anything() -> None:
    hidden = torch.where(MASK == 1, math.nan, IMAGE)
    options = {"classes": 1, **FIXED}
    assert torch.equal(
        inpaint(SmallModel(), hidden, MASK, **options), inpaint(SmallModel(), IMAGE, MASK, **options)
    )


def test_denoise_stays_near_a_sure_observation() -> None:
    observed = IMAGE.expand(2, -1, -1, -1)
    errors = [
        (denoise(SmallModel(), observed, std, classes=0, steps=50, progress=False) - observed).abs().mean()
        for std in (0.01, 10.0)
    ]
    assert errors[0] < 0.1 < errors[1]


def test_with_the_bundled_model_and_without_its_fast_form() -> None:
    model = fastdiff.load("fashion-mnist")
    image, mask = torch.zeros(1, 32, 32), torch.zeros(32, 32)
    mask[16:] = 1
    options = {"classes": 3, "steps": 2, "progress": False}
    fast, plain = (inpaint(model, image, mask, 2, optimize=o, **options) for o in (True, False))
    torch.testing.assert_close(fast, plain, rtol=1e-2, atol=1e-3)
    assert torch.equal(fast[:, :, :16], torch.zeros(2, 1, 16, 32))


def _inpaint(image: Tensor = IMAGE, mask: Tensor = MASK, n: int = 1, **options) -> None:
    inpaint(SmallModel(), image, mask, n, **{"classes": 0, "steps": 2, "progress": False} | options)


def _guide(log_r, n: int = 2, **options) -> None:
    draw(SmallModel(), n, condition=Guide(log_r, **options), sampler="ancestral")


MISTAKES = {
    "mask-size": (
        lambda: _inpaint(mask=torch.ones(7, 8)),
        r"size of the model's images, 8 x 8, got \[7, 8\]",
    ),
    "mask-rank": (lambda: _inpaint(mask=torch.ones(8)), r"8 x 8, got \[8\]"),
    "mask-channels": (
        lambda: _inpaint(mask=torch.ones(2, 8, 8)),
        r"mask must have shape \[8, 8\], \[3, 8, 8\]",
    ),
    "mask-no-pixels": (lambda: _inpaint(mask=torch.ones(0, 0)), r"8 x 8, got \[0, 0\]"),
    "mask-nan": (lambda: _inpaint(mask=MASK / MASK), "0 .known. and 1 .to be filled. only, got nan"),
    "mask-grey": (lambda: _inpaint(mask=MASK * 0.5), "only, got 0.5 among them"),
    "mask-bytes": (lambda: _inpaint(mask=(MASK * 255).byte()), "only, got 255 among them"),
    "mask-empty": (lambda: _inpaint(mask=0 * MASK), "leaves nothing to fill"),
    "image-size": (lambda: _inpaint(image=IMAGE[:, :7]), r"image must have shape \[3, 8, 8\]"),
    "image-bytes": (lambda: _inpaint(image=IMAGE.byte()), "image must be floating point"),
    "image-0-to-255": (lambda: _inpaint(image=IMAGE + 100), r"image must lie in \[-1, 1\], but its known"),
    "image-nan": (lambda: _inpaint(image=IMAGE + math.nan), "image must be finite where it is known"),
    "repeats": (lambda: _inpaint(repeats=0), "repeats must be a whole number of at least 1, got 0"),
    "repeats-without-noise": (
        lambda: _inpaint(repeats=2, sampler="heun"),
        "Inpaint needs the steps of the reverse chain to repeat them: use sampler 'ancestral'",
    ),
    "no-completion": (lambda: _inpaint(n=0), "at least one image and one completion, got 1 and n = 0"),
    "no-image": (lambda: _inpaint(image=IMAGE[None, :][:0]), "at least one image"),
    "denoise-std": (lambda: Denoise(IMAGE, 0.0), "noise_std must be a positive number, got 0"),
    "denoise-schedule": (lambda: Denoise(IMAGE, 1.0, "linear"), "'constant' or 'annealed', got 'linear'"),  # type: ignore[arg-type]
    "denoise-nan": (
        lambda: denoise(SmallModel(), IMAGE[None] / 0, 1.0, classes=0, steps=2),
        "observed must be finite",
    ),
    "denoise-shape": (
        lambda: denoise(SmallModel(), IMAGE[None, :2], 1.0, classes=0, steps=2),
        r"observed must have shape \[3, 8, 8\]",
    ),
    "denoise-without-noise": (
        lambda: draw(SmallModel(), condition=Denoise(IMAGE, 1.0), sampler="dpmpp"),
        "Denoise needs the steps of the reverse chain: use sampler 'ancestral'",
    ),
    "guide-scale": (lambda: Guide(class_gradient, math.inf), "must be a finite number, got inf"),
    "guide-shape": (lambda: _guide(lambda x, t: x.sum()), r"one number per sample, \[2\], got \[\]"),
    "guide-detached": (lambda: _guide(lambda x, t: x.detach().sum((1, 2, 3))), "must depend on x"),
    "guide-nan": (lambda: _guide(lambda x, t: (x * math.nan).sum((1, 2, 3))), "gradient of log_r has NaN"),
    "guide-rows": (
        lambda: _guide(class_gradient, rows={"y": torch.zeros(3)}),
        "'y' of the guide must be a tensor of 2 rows",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(mistake, message: str) -> None:
    with pytest.raises(FastdiffError, match=message) as raised:
        mistake()
    assert "\n" not in str(raised.value)
