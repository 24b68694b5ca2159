"""The captured loop: equal to the loop step by step; kept, found again, freed; not where it cannot be.

On a GPU it records and replays; without one, the same code calls what would have been recorded.
"""

from __future__ import annotations

import contextlib
import logging

import pytest
import tiny
import torch
from noisy_models import DEVICE, Embedding, Model, make_batch, make_plan
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet
from fastdiff.sampling import Sampler, capture
from fastdiff.sampling.capture import Captures, why_not_captured
from fastdiff.sampling.loop import run
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device is visible to torch")
CONFIG = tiny.UNET


@needs_gpu
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_replayed_graph_equals_the_loop(sampler: str, guided: bool) -> None:
    model, plan, captures = Embedding().to(DEVICE), make_plan(sampler, guided), Captures()
    for first in (0, 3, 6):
        start, options = make_batch(3, first, guided)
        replayed = run(plan, model, start, **options, captures=captures)
        assert len(captures) == 1, "recorded once, and replayed"
        assert torch.equal(replayed, run(plan, model, start, **options))
    captures.release()


def _told(caplog) -> list[str]:
    """What the log says of capturing; ops may tell in the same place why they have no kernels."""
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("sampling: ")]


class _Called:
    """In a CUDA graph's place where there is no GPU: a replay calls what would have been recorded."""

    def __init__(self, call, pool) -> None:
        self.replay = call

    def reset(self) -> None:
        self.replay = None


@pytest.fixture
def without_gpu(monkeypatch):
    """The captured loop's own code on the CPU."""
    monkeypatch.setattr(capture, "DEVICE_TYPE", DEVICE)
    if not HAS_GPU:
        monkeypatch.setattr(capture, "_side_stream", lambda x: contextlib.nullcontext())
        monkeypatch.setattr(capture, "_record", _Called)


@pytest.mark.parametrize("precision", [None, "bfloat16"])
@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_sampler_captures(without_gpu, sampler: str, precision: str | None) -> None:
    """Whole calls, in several batches, with the last one smaller."""
    options = dict(
        sampler=sampler, steps=4, guidance_scale=1.5, batch_size=2, optimize=False, precision=precision
    )
    model = Embedding().to(DEVICE)
    arguments = dict(classes=[0, 1, 2, 2, 3], seed=3, progress=False)
    with Sampler(model, **options) as captured:
        images = captured(5, **arguments)
        kept = captured.captured
        assert kept <= 3, "classes 0 and 1, 2 alone, and the smaller batch"
        assert torch.equal(captured(5, **arguments), images)
        assert captured.captured == kept
    assert captured.captured == 0
    assert torch.equal(Sampler(model, **options, capture=False)(5, **arguments), images)
    assert torch.equal(captured(5, **arguments), images), "usable after it was closed"


def test_a_refused_recording_is_told_once_and_not_tried_again(without_gpu, caplog, monkeypatch) -> None:
    tried = []

    def refuse(call, pool):
        tried.append(call)
        raise RuntimeError("operation not permitted when stream is capturing\nSearch for ...")

    monkeypatch.setattr(capture, "_record", refuse)
    monkeypatch.setattr(capture, "_logged", set())
    sampler = Sampler(Model().to(DEVICE), steps=3)
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        images = [sampler(2, classes=1, progress=False) for _ in range(2)]
    assert len(tried) == 1 and sampler.captured == 0
    (line,) = _told(caplog)
    assert line == "sampling: not captured as a CUDA graph: operation not permitted when stream is capturing"
    assert torch.equal(*images)


def test_a_captured_model_follows_its_weights(without_gpu) -> None:
    model = Embedding().to(DEVICE)
    for precision in (None, "bfloat16"):
        sampler = Sampler(model, steps=3, optimize=False, precision=precision)
        first = sampler(2, classes=1, progress=False)
        with torch.no_grad():
            model.conv.bias.add_(0.3)
        second = sampler(2, classes=1, progress=False)
        assert not torch.equal(first, second)
        assert torch.equal(second, Sampler(model, steps=3, precision=precision, capture=False)(2, classes=1))
        assert sampler.captured == 1, "changed in place: the same graph"
        sampler.close()


def test_non_finite_outputs_are_named_after_a_captured_loop(without_gpu) -> None:
    model = Model().to(DEVICE)
    model.label.weight.data[2] = torch.nan
    with pytest.raises(FastdiffError, match=r"NaN or Inf at step 1 of 3 .* for sample 2; sampling stopped"):
        Sampler(model, steps=3)(4, classes=[0, 1, 2, 3], progress=False)


def test_what_is_not_captured(monkeypatch) -> None:
    model = Model()
    assert why_not_captured(model) is None
    assert "a function, whose Python runs at every step" in str(why_not_captured(lambda x, t: x))
    handle = model.conv.register_forward_hook(lambda *_: None)
    assert "the model's conv has a hook" in str(why_not_captured(model))
    handle.remove()
    assert why_not_captured(model) is None


def test_the_log_says_once_why_nothing_is_captured(caplog, monkeypatch) -> None:
    monkeypatch.setattr(capture, "_logged", set())
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        for _ in range(2):
            capture.log_once("the model is a function")
    assert [r.getMessage() for r in caplog.records] == [
        "sampling: not captured as a CUDA graph: the model is a function"
    ]


@needs_gpu
def test_a_model_that_waits_is_called_instead(caplog, monkeypatch) -> None:
    """Recording fails in the middle; the device, the log and the result survive it."""
    monkeypatch.setattr(capture, "_logged", set())

    class Waiting(Model):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return super().forward(x, t, y) * (1.0 if x.isfinite().all().item() else 0.0)

    model, plan, captures = Waiting().to(DEVICE), make_plan("ddim"), Captures()
    start, options = make_batch()
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        for _ in range(2):
            assert torch.equal(
                run(plan, model, start, **options, captures=captures), run(plan, model, start, **options)
            )
    assert len(captures) == 0 and len(_told(caplog)) == 1
    fine = Model().to(DEVICE)
    assert torch.equal(
        run(plan, fine, start, **options, captures=captures), run(plan, fine, start, **options)
    )
    assert len(captures) == 1


@needs_gpu
def test_recordings_are_found_again_and_freed() -> None:
    model = UNet(CONFIG).to(DEVICE)
    model.diffusion = DiffusionConfig(steps=40)
    with Sampler(model, steps=4) as sampler, use_backend("reference"):
        sampler(4, progress=False)
        sampler(4, seed=1, progress=False)
        assert sampler.captured == 1
        sampler(3, progress=False)
        assert sampler.captured == 2, "another batch size"
        model.middle_block[0].in_layers[2].weight.data = (
            model.middle_block[0].in_layers[2].weight.data.clone()
        )
        sampler(3, progress=False)
        assert sampler.captured == 3, "a parameter lies elsewhere"
        for n in (5, 6):
            sampler(n, progress=False)
        assert sampler.captured == capture.KEPT
        sampler.close()
        assert sampler.captured == 0
