"""Bits per dimension of images: against guided-diffusion's loop, whatever the batch size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.evaluation import Images, image_nll
from fastdiff.models import build_model
from fastdiff.ops.philox import normal, sample_seeds

CONFIG = tiny.GRAY
STEPS = 12


def _model(variance: Any, **changes: Any) -> Any:
    diffusion = fastdiff.DiffusionConfig(steps=STEPS, schedule="cosine", variance=variance)
    torch.manual_seed(0)
    model: Any = build_model(replace(CONFIG, learn_sigma=diffusion.learns_variance, **changes))
    for p in model.parameters():
        p.data += 0.03 * torch.randn(p.shape)
    model.diffusion = diffusion
    return model.eval().requires_grad_(False)


def _images(n: int = 5, labels: bool = True) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Images(pixels, "noise", torch.arange(n) % 3 if labels else None)


@pytest.mark.parametrize("respacing", ["", "5"], ids=["whole", "respaced"])
@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_agrees_with_guided_diffusion(variance: str, respacing: str, monkeypatch) -> None:
    """calc_bpd_loop with the same noise: term for term."""
    from fastdiff.interop.guided_diffusion import gaussian_diffusion as gd
    from fastdiff.interop.guided_diffusion.respace import SpacedDiffusion, space_timesteps

    model, images = _model(variance), _images()
    found = image_nll(
        model, images, timestep_respacing=respacing, seed=7, batch_size=len(images), progress=False
    )
    learned = variance == "learned_range"
    mirror: Any = SpacedDiffusion(
        use_timesteps=space_timesteps(STEPS, respacing or [STEPS]),
        betas=gd.get_named_beta_schedule("cosine", STEPS),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE if learned else gd.ModelVarType.FIXED_LARGE,
        loss_type=gd.LossType.MSE,
    )
    steps, seeds = iter(reversed(range(len(found.timesteps)))), sample_seeds(len(images), 7)
    monkeypatch.setattr(torch, "randn_like", lambda x: normal(seeds, x.shape[1:], step=next(steps)))
    x0 = images.images.float() / 127.5 - 1
    theirs = mirror.calc_bpd_loop(model, x0, model_kwargs={"y": images.labels})
    close: Any = dict(rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(found.terms.total, theirs["total_bpd"], **close)
    torch.testing.assert_close(found.terms.prior, theirs["prior_bpd"], **close)
    for name, other in (("vb", "vb"), ("x0_mse", "xstart_mse"), ("epsilon_mse", "mse")):
        torch.testing.assert_close(getattr(found.terms, name), theirs[other].flip(1), **close)


def test_does_not_depend_on_the_batch_size() -> None:
    model, images = _model("fixed_small"), _images()
    whole, small = (image_nll(model, images, batch_size=n, progress=False).terms for n in (5, 2))
    torch.testing.assert_close(whole.total, small.total, rtol=1e-4, atol=1e-5)
    other = image_nll(model, images, seed=1, progress=False).terms
    assert (other.total - whole.total).abs().min() > 1e-3


def test_summary_adds_up() -> None:
    found = image_nll(_model("fixed_small"), _images(), timestep_respacing="4", progress=False)
    summary = found.summary()
    assert summary["images"] == 5 and summary["timesteps"] == found.timesteps.tolist() == [0, 4, 7, 11]
    assert summary["bits_per_dim"] == pytest.approx(summary["prior"] + sum(summary["vb"]), rel=1e-5)
    spread = np.std(found.terms.total.numpy(), ddof=1) / 5**0.5
    assert summary["standard_error"] == pytest.approx(spread, rel=1e-5)
    assert image_nll(_model("fixed_small"), _images(1), progress=False).summary()["standard_error"] is None


def test_labels() -> None:
    """A conditional model needs them; with a null class it does without; an unconditional one does not look."""
    with pytest.raises(FastdiffError, match="3 classes but noise has no labels"):
        image_nll(_model("fixed_small"), _images(labels=False), progress=False)
    model, seen = _model("fixed_small", null_label=True), []

    def watch(_: Any, __: Any, cond: dict[str, Tensor]) -> None:
        seen.append(cond["y"].tolist())

    model.register_forward_pre_hook(watch, with_kwargs=True)
    image_nll(model, _images(2, labels=False), progress=False)
    image_nll(model, _images(2), progress=False)
    assert seen == [[3, 3]] * STEPS + [[0, 1]] * STEPS
    image_nll(_model("fixed_small", num_classes=None), _images(2, labels=False), progress=False)


def test_a_broken_model_is_told() -> None:
    model = _model("fixed_small")
    list(model.parameters())[-1].data.fill_(float("nan"))
    with pytest.raises(FastdiffError, match="the bound of images 0 to 1 has NaN or Inf"):
        image_nll(model, _images(), batch_size=2, progress=False)


@pytest.mark.parametrize(
    ("options", "message"), [({"batch_size": 0}, "batch_size"), ({"timestep_respacing": "99"}, "99")]
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FastdiffError, match=message):
        image_nll(_model("fixed_small"), _images(), progress=False, **options)
