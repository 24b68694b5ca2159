"""The step on static buffers: equal to the loop, at fixed addresses, and never waiting for the device."""

from __future__ import annotations

import backends
import pytest
import tiny
import torch
from noisy_models import DEVICE, Embedding, Model, make_batch, make_plan
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.backend import Backend, use_backend
from fastdiff.models import UNet
from fastdiff.sampling.loop import run
from fastdiff.sampling.plan import Plan
from fastdiff.sampling.samplers import DIFFUSION_SAMPLERS
from fastdiff.sampling.step import StaticStep, make_step

CONFIG = tiny.UNET


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
            for row in plan.launches:
                static(row)
            assert {name: t.data_ptr() for name, t in static.buffers().items()} == addresses
            assert int(static.index) == plan.calls
            results.append((static.x.clone(), static.flags.clone()))
    return results


@pytest.mark.parametrize("kind", [Model, Embedding])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_static_step_equals_the_loop(sampler: str, guided: bool, kind: type) -> None:
    """Bit for bit: history, guidance, a learned variance, noise; then with another batch on the same buffers."""
    model, plan = kind().to(DEVICE), make_plan(sampler, guided)
    results = _statically(plan, model, [make_batch(3, first, guided) for first in (0, 3)])
    for first, (x, flags) in zip((0, 3), results, strict=True):
        start, options = make_batch(3, first, guided)
        assert torch.equal(x, run(plan, model, start, **options))
        assert flags.shape == (plan.calls, 3) and not flags.any()


@pytest.mark.skipif(DEVICE != "cpu", reason="simulated kernels take the CPU's tensors")
@backends.each_kernel("reverse_step", Backend.CPU)
@pytest.mark.parametrize("sampler", ["ancestral", "heun", "dpmpp"])
def test_kernels_of_a_gpu_read_the_number_of_the_step_on_the_device(backend: Backend, sampler: str) -> None:
    model, plan = Model(), make_plan(sampler)
    start, options = make_batch(2)
    with use_backend(backend):
        ((x, _),) = _statically(plan, model, [make_batch(2)])
        assert torch.equal(x, run(plan, model, start, **options))
    with use_backend("cpu"):
        torch.testing.assert_close(run(plan, model, start, **options), x, rtol=1e-4, atol=1e-5)


def test_flags_are_written_at_their_step() -> None:
    plan = make_plan("dpmpp")
    model = Model().to(DEVICE)
    model.label.weight.data[2] = torch.inf
    ((_, flags),) = _statically(plan, model, [make_batch(4)])
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
@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_a_step_never_waits(sampler: str, guided: bool) -> None:
    plan = make_plan(sampler, guided)
    x, options = make_batch(3, guided=guided)
    with torch.inference_mode():
        static = StaticStep(
            make_step(plan, Embedding().to(DEVICE), x, options.pop("cond"), **options), plan, x
        )
        for row in dict.fromkeys(plan.launches):
            with _Watch() as watch:
                static(row)
            assert "reverse_step" in watch.calls and "conv2d" in watch.calls
            assert not watch.wrong


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_network_and_the_reference_never_wait(backend: str | None) -> None:
    """On PyTorch's meta device, whose tensors have no values: to ask for one raises, and the host is another device.

    The reference of reverse_step, which is what runs where there is no kernel, is looked into by itself.
    """
    from fastdiff.ops.reverse_step.reference import Arguments, reverse_step

    plan = make_plan("ancestral")
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
                reverse_step(
                    Arguments(x, learned, table, index, None, x, None, None, seeds, 0, True, "learned_range")
                )
    assert len(watch.calls) > 20 and not watch.wrong
