"""The captured loop: a step on static buffers equals the loop step by step, and is fit to be recorded.

On a GPU the same tests record and replay; without one, they call the static step.
"""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.backend import use_backend
from fastdiff.diffusion.config import DiffusionConfig
from fastdiff.diffusion.gaussian import GaussianDiffusion
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet, UNetConfig
from fastdiff.sampling import Sampler, capture
from fastdiff.sampling.capture import Captures, why_not_captured
from fastdiff.sampling.loop import run
from fastdiff.sampling.plan import Plan
from fastdiff.sampling.samplers import SAMPLERS, sampling_plan
from fastdiff.sampling.step import StaticStep, make_step

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device is visible to torch")
CONFIG = UNetConfig(
    image_size=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)


class Model(nn.Module):
    """A convolution whose bias depends on the time and the class, with a learned variance; 4 means "no class"."""

    diffusion = DiffusionConfig(steps=40, variance="learned_range")
    config = SimpleNamespace(image_size=8, in_channels=3, num_classes=4)
    null_class = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.label = nn.Conv2d(3, 6, 3, padding=1), nn.Embedding(5, 6)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        bias = (t / 1000).to(self.conv.weight.dtype)[:, None] - 0.5
        bias = bias if y is None else bias + self.label(y)
        return self.conv(x) + bias[:, :, None, None]


class Embedding(Model):
    """The same in two parts."""

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        bias = (t / 1000)[:, None] - 0.5
        return bias.expand(-1, 6) if y is None else bias + self.label(y)

    def denoise(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x) + embedding[:, :, None, None]


def _plan(sampler: str, guided: bool = False, steps: int = 5) -> Plan:
    options = {"eta": 1.0} if sampler == "ddim" else {}
    process = GaussianDiffusion(Model.diffusion)
    return sampling_plan(
        process, sampler=sampler, steps=steps, guidance_scale=2.5 if guided else None, **options
    )


def _batch(n: int = 3, first: int = 0, guided: bool = False) -> tuple[Tensor, dict]:
    """x and the options of ``run`` and ``make_step``."""
    g = torch.Generator().manual_seed(first)
    x = torch.randn(n, 3, 8, 8, generator=g).to(DEVICE).contiguous(memory_format=torch.channels_last)
    seeds = torch.arange(first, first + n, device=DEVICE)
    y = (torch.arange(n, device=DEVICE) + first) % 4
    return x, {"cond": {"y": y}, "seeds": seeds, "null_class": 4 if guided else None}


def _statically(
    plan: Plan, model: nn.Module, batches: list[tuple[Tensor, dict]]
) -> list[tuple[Tensor, Tensor]]:
    """(final state, flags) of each batch through one static step; addresses must not change meanwhile."""
    results, static = [], None
    with torch.inference_mode():
        for x, options in batches:
            step = make_step(plan, model, x, options.pop("cond"), **options)
            static = static or StaticStep(step, plan, x)
            addresses = {name: t.data_ptr() for name, t in static.buffers().items()}
            static.load(step, x)
            for history in plan.history:
                static(history)
            assert {name: t.data_ptr() for name, t in static.buffers().items()} == addresses
            assert int(static.index) == plan.calls
            results.append((static.x.clone(), static.flags.clone()))
    return results


@pytest.mark.parametrize("kind", [Model, Embedding])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_static_step_equals_the_loop(sampler: str, guided: bool, kind: type) -> None:
    """Bit for bit: history, guidance, a learned variance, noise; then with another batch on the same buffers."""
    model, plan = kind().to(DEVICE), _plan(sampler, guided)
    results = _statically(plan, model, [_batch(3, first, guided) for first in (0, 3)])
    for first, (x, flags) in zip((0, 3), results, strict=True):
        start, options = _batch(3, first, guided)
        assert torch.equal(x, run(plan, model, start, **options))
        assert flags.shape == (plan.calls, 3) and not flags.any()


@needs_gpu
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replayed_graph_equals_the_loop(sampler: str, guided: bool) -> None:
    model, plan, captures = Embedding().to(DEVICE), _plan(sampler, guided), Captures()
    for first in (0, 3, 6):
        start, options = _batch(3, first, guided)
        replayed = run(plan, model, start, **options, captures=captures)
        assert len(captures) == 1, "recorded once, and replayed"
        assert torch.equal(replayed, run(plan, model, start, **options))
    captures.release()


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
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_captures(without_gpu, sampler: str, precision: str | None) -> None:
    """Whole calls, in several batches, with the last one smaller."""
    options = dict(
        sampler=sampler, steps=4, guidance_scale=1.5, batch_size=2, optimize=False, precision=precision
    )
    model = Embedding().to(DEVICE)
    arguments = dict(classes=[0, 1, 2, 2, 3], seed=3, progress=False)
    with Sampler(model, **options) as captured:
        images = captured(5, **arguments)
        kept = len(captured._captures)
        assert kept <= 3, "classes 0 and 1, 2 alone, and the smaller batch"
        assert torch.equal(captured(5, **arguments), images)
        assert len(captured._captures) == kept
    assert len(captured._captures) == 0
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
    assert len(tried) == 1 and len(sampler._captures) == 0
    (line,) = [r.getMessage() for r in caplog.records]
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
        assert len(sampler._captures) == 1, "changed in place: the same graph"
        sampler.close()


def test_non_finite_outputs_are_named_after_a_captured_loop(without_gpu) -> None:
    model = Model().to(DEVICE)
    model.label.weight.data[2] = torch.nan
    with pytest.raises(FastdiffError, match=r"NaN or Inf at step 1 of 3 .* for sample 2; sampling stopped"):
        Sampler(model, steps=3)(4, classes=[0, 1, 2, 3], progress=False)


def test_flags_are_written_at_their_step() -> None:
    plan = _plan("dpmpp")
    model = Model().to(DEVICE)
    model.label.weight.data[2] = torch.inf
    ((_, flags),) = _statically(plan, model, [_batch(4)])
    assert flags.tolist() == [[0, 0, 1, 0]] * plan.calls


class _Watch(TorchDispatchMode):
    """Notes what no CUDA graph can hold: waits for the device, and tensors made of numbers on the host."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "lift_fresh",
        "is_nonzero",
        "unique",
        "masked_select",
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.wrong: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls.append(name)
        indices = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ()
        masked = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
        if masked or any(name.startswith(word) for word in self.FORBIDDEN):
            self.wrong.append(str(func))
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in (*args, out) if isinstance(t, Tensor)}
        if len(devices) > 1:
            self.wrong.append(f"{func} between {devices}")
        return out


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0], device=x.device),
        lambda x: x.to("meta"),
        lambda x: bool(x.any()),
    ],
)
def test_the_watch_sees_what_is_wrong(wrong) -> None:
    with torch.inference_mode(), _Watch() as watch:
        wrong(torch.ones(3, device=DEVICE))
    assert watch.wrong


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_never_waits(sampler: str, guided: bool) -> None:
    plan = _plan(sampler, guided)
    x, options = _batch(3, guided=guided)
    with torch.inference_mode():
        static = StaticStep(
            make_step(plan, Embedding().to(DEVICE), x, options.pop("cond"), **options), plan, x
        )
        for history in dict.fromkeys(plan.history):
            with _Watch() as watch:
                static(history)
            assert "reverse_step" in watch.calls and "conv2d" in watch.calls
            assert not watch.wrong


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_network_and_the_reference_never_wait(backend: str | None) -> None:
    """On PyTorch's meta device, whose tensors have no values: to ask for one raises, and the host is another device.

    The reference of reverse_step, which is what runs where there is no kernel, is looked into by itself.
    """
    from fastdiff.ops.reverse_step.reference import reverse_step

    plan = _plan("ancestral")
    with torch.inference_mode(), torch.device("meta"):
        model, x = UNet(CONFIG).eval(), torch.randn(2, 3, 8, 8)
        seeds = torch.zeros(2, dtype=torch.int64)
        learned = torch.randn(2, 6, 8, 8)
        index = torch.zeros((), dtype=torch.int64)
        if backend is None:
            times = torch.zeros(plan.calls)
            emb = model.embed(times)
            with _Watch() as watch:
                model.denoise(x, emb.index_select(0, index.reshape(1)).expand(2, -1))
        else:
            table = torch.zeros(plan.calls, 12)
            with _Watch() as watch:
                reverse_step(x, learned, table, index, None, x, None, None, seeds, 0, True, "learned_range")
    assert len(watch.calls) > 20 and not watch.wrong


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

    model, plan, captures = Waiting().to(DEVICE), _plan("ddim"), Captures()
    start, options = _batch()
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        for _ in range(2):
            assert torch.equal(
                run(plan, model, start, **options, captures=captures), run(plan, model, start, **options)
            )
    assert len(captures) == 0 and len(caplog.records) == 1
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
        sampler(4, batch_size=None, progress=False)
        sampler(4, seed=1, progress=False)
        assert len(sampler._captures) == 1
        sampler(3, progress=False)
        assert len(sampler._captures) == 2, "another batch size"
        model.middle_block[0].in_layers[2].weight.data = (
            model.middle_block[0].in_layers[2].weight.data.clone()
        )
        sampler(3, progress=False)
        assert len(sampler._captures) == 3, "a parameter lies elsewhere"
        for n in (5, 6):
            sampler(n, progress=False)
        assert len(sampler._captures) == capture.KEPT
        sampler.close()
        assert len(sampler._captures) == 0
