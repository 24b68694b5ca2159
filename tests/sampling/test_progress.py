"""A function given as ``progress`` follows a run: each step in order, nothing about the images changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import fastdiff
from fastdiff.sampling.capture import Captures


@pytest.fixture(scope="module")
def model():
    model = tiny.build(replace(tiny.GRAY, num_classes=None))
    model.diffusion = fastdiff.DiffusionConfig(steps=100, schedule="cosine")
    return model


def followed(model, n: int, **options) -> tuple[list[fastdiff.Progress], torch.Tensor]:
    """What a function was told, its tensors kept, and the images."""
    told: list[fastdiff.Progress] = []
    keep = lambda now: told.append(replace(now, x=now.x.clone(), x0=now.x0.clone()))  # noqa: E731
    return told, fastdiff.sample(model, n, progress=keep, **options)


@pytest.mark.parametrize("sampler, calls", [("ddim", 4), ("heun", 7), ("ancestral", 4), ("dpmpp", 4)])
def test_each_step_is_told_and_the_images_are_the_same(model, sampler, calls) -> None:
    told, images = followed(model, 3, sampler=sampler, steps=4)
    assert [(now.step, now.steps) for now in told] == [(i + 1, calls) for i in range(calls)]
    assert all(now.x.shape == now.x0.shape == images.shape for now in told)
    assert all(now.x0.abs().max() <= 1 for now in told)
    assert torch.equal(told[-1].x, images)
    assert torch.equal(images, fastdiff.sample(model, 3, sampler=sampler, steps=4, progress=False))


def test_ddim_moves_along_the_estimates(model) -> None:
    """Song et al. 2021, equation 12, from the state before a step and the estimate that it was made with."""
    told, _ = followed(model, 2, sampler="ddim", steps=4, spacing="uniform")
    plan = fastdiff.Sampler(model, sampler="ddim", steps=4)._plan
    for before, now, (signal, noise), (signal_after, noise_after) in zip(
        told, told[1:], plan.levels[1:].tolist(), plan.levels_after[1:].tolist(), strict=False
    ):
        direction = (before.x - signal * now.x0) / noise
        torch.testing.assert_close(
            now.x, signal_after * now.x0 + noise_after * direction, atol=1e-5, rtol=1e-5
        )


def test_steps_are_counted_over_batches(model) -> None:
    told, _ = followed(model, 5, sampler="ddim", steps=3, batch_size=2)
    assert [now.step for now in told] == list(range(1, 10)) and {now.steps for now in told} == {9}
    assert [len(now.x) for now in told] == [2] * 6 + [1] * 3


def test_an_exception_ends_the_run(model) -> None:
    seen = []

    def stop(now: fastdiff.Progress) -> None:
        seen.append(now.step)
        if now.step == 2:
            raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        fastdiff.sample(model, 2, sampler="ddim", steps=5, progress=stop)
    assert seen == [1, 2]


def test_steps_of_chosen_length_go_sample_by_sample(model) -> None:
    told, images = followed(model, 2, sampler="dpm_adaptive")
    assert {now.x.shape for now in told} == {(1, 1, 8, 8)}
    assert [now.step for now in told] == list(range(1, len(told) + 1))
    assert torch.equal(images, fastdiff.sample(model, 2, sampler="dpm_adaptive", progress=False))


def test_inpaint_interpolate_and_encode_tell_too(model) -> None:
    counts = []
    image, mask = torch.zeros(1, 8, 8), torch.zeros(8, 8)
    mask[2:5] = 1
    quick = {"steps": 3, "progress": lambda now: counts.append(now.step)}
    fastdiff.inpaint(model, image, mask, sampler="ddim", **quick)
    fastdiff.interpolate(model, 0, 1, 3, **quick)
    fastdiff.encode(model, image[None], **quick)
    assert counts == [1, 2, 3] * 2 + [1, 2]  # an image stands at the cleanest level already


def test_a_followed_run_is_not_replayed(model, monkeypatch) -> None:
    """A recording has no estimate to show."""
    asked = []
    monkeypatch.setattr(Captures, "find", lambda *_: asked.append(1))
    fastdiff.sample(model, 1, steps=2, progress=lambda now: None)
    assert not asked
    fastdiff.sample(model, 1, steps=2, progress=False)
    assert asked
