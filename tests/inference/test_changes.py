"""What becomes of an optimized model is seen by its next call: hooks, adapters, other layers, uncounted writes."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import assert_close, inputs_of, run, small_model
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, prune

import fastdiff
from fastdiff.errors import FastdiffError
from fastdiff.inference import trunk, watch
from fastdiff.inference.packed import PackedConv
from fastdiff.models import UNet

INNER = [
    "input_blocks.0.0",
    "input_blocks.1",
    "input_blocks.1.0",
    "input_blocks.1.0.in_layers.0",
    "input_blocks.1.0.in_layers.1",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "input_blocks.1.0.out_layers.0",
    "input_blocks.1.0.out_layers.3",
    "input_blocks.3.0.skip_connection",
    "input_blocks.3.1",
    "input_blocks.3.1.norm",
    "input_blocks.3.1.qkv",
    "input_blocks.3.1.proj_out",
    "middle_block",
    "output_blocks.1.2",
    "time_embed.0",
    "out",
    "out.0",
    "out.2",
]


@pytest.mark.parametrize("before", [True, False], ids=["hooked before", "hooked after"])
@pytest.mark.parametrize("name", INNER)
def test_a_hook_on_an_inner_layer_fires_and_its_answer_counts(name: str, before: bool) -> None:
    model = small_model()
    if not before:
        fastdiff.optimize(model)
        run(model)
    module, seen = model.get_submodule(name), []
    hook = module.register_forward_hook(lambda _, args, out: (seen.append(1), 1.5 * out)[1])
    if before:
        fastdiff.optimize(model)
    got, calls = run(model), len(seen)
    wanted = run(_plain(model))
    assert calls == 1 and len(seen) == 2
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    hook.remove()
    assert_close(run(model), run(_plain(model)))
    assert len(seen) == 2


def test_a_hook_fires_in_sampling() -> None:
    model, seen = small_model(), []
    model.get_submodule("middle_block.0.out_layers.3").register_forward_pre_hook(lambda *_: seen.append(1))
    fastdiff.sample(model, 2, steps=3, diffusion=fastdiff.DiffusionConfig(), progress=False)
    assert len(seen) == 3


class Adapter(nn.Module):
    """A low-rank adapter as peft has it: around the layer, whose weight it shows as its own."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, kind = base, type(base)
        width = {nn.Linear: "features"}.get(kind, "channels")
        inputs, outputs = getattr(base, f"in_{width}"), getattr(base, f"out_{width}")
        if kind is nn.Linear:
            self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)
        else:
            conv = nn.Conv1d if kind is nn.Conv1d else nn.Conv2d
            self.down, self.up = conv(inputs, 2, 1, bias=False), conv(2, outputs, 1, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def _replace(model: nn.Module, name: str, make: Callable[[Any], nn.Module]) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, make(model.get_submodule(name)))


def _wider(layer: Any) -> nn.Module:
    return nn.Conv2d(layer.in_channels, layer.out_channels, 5, padding=2)


def _another(layer: Any) -> nn.Module:
    other = copy.deepcopy(layer)
    other.weight.data.abs_()
    return other


def _with_forward(layer: Any) -> nn.Module:
    plain = layer.forward
    layer.forward = lambda *args: plain(*args).abs()
    return layer


def _parametrized(layer: Any) -> nn.Module:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs()

    return parametrize.register_parametrization(layer, "weight", Positive())


LAYERS = [
    n for n in INNER if n.endswith((".0.0", "layers.2", "layers.1", "layers.3", "qkv", "out.2", "connection"))
]
LAYERS.remove("input_blocks.1.0.in_layers.1")
EXCHANGES = {
    "adapter": Adapter,
    "another": _another,
    "forward": _with_forward,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "parametrized": _parametrized,
}


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())
@pytest.mark.parametrize("name", LAYERS)
def test_an_exchanged_layer_is_seen(name: str, exchange: Callable[[Any], nn.Module]) -> None:
    model = small_model()
    fastdiff.optimize(model)
    before = run(model)
    _replace(model, name, exchange)
    got = run(model)
    assert (got - before).abs().max() > 1e-3
    torch.testing.assert_close(got, run(_plain(model)), rtol=1e-3, atol=1e-3)  # larger weights


def test_a_convolution_of_another_size_is_seen() -> None:
    model = small_model()
    fastdiff.optimize(model)
    _replace(model, "input_blocks.1.0.in_layers.2", _wider)
    assert_close(run(model), run(_plain(model)))


def test_dropout_that_stays_on_in_eval_mode() -> None:
    model = small_model(dropout=0.5)
    fastdiff.optimize(model)
    first = run(model)
    model.get_submodule("middle_block.0.out_layers.2").train()
    torch.manual_seed(1)
    got = run(model)
    torch.manual_seed(1)
    assert_close(got, run(_plain(model)))
    assert (got - first).abs().max() > 0.01


def _average(model: nn.Module) -> None:
    """As diffusers' ``EMAModel.copy_to``."""
    for p in model.parameters():
        p.data.copy_((1.2 * p).data)


def _first(model: nn.Module) -> Tensor:
    return model.get_parameter("middle_block.0.in_layers.2.weight").data


WRITES: dict[str, Callable[[nn.Module], Any]] = {
    "average": _average,
    "one weight": lambda m: _first(m).mul_(1.5),
    "an output channel": lambda m: _first(m)[17].mul_(5),
    "an input channel": lambda m: _first(m)[:, 40].mul_(5),
    "channels in another order": lambda m: _first(m).copy_(_first(m).flip(0)),
    "through numpy": lambda m: _first(m).numpy().__imul__(1.5),
    "a linear layer": lambda m: m.get_parameter("middle_block.0.emb_layers.1.weight").data.mul_(2),
    "strided": lambda m: m.get_parameter("input_blocks.2.0.op.weight").data.mul_(2),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writes_that_pytorch_does_not_count(write: Callable[[nn.Module], Any]) -> None:
    model = small_model(resblock_updown=False)
    fastdiff.optimize(model)
    before = run(model)
    with torch.no_grad():
        write(model)
    got = run(model)
    assert (got - before).abs().max() > 1e-3
    torch.testing.assert_close(got, run(_plain(model)), rtol=1e-3, atol=1e-3)


def test_only_what_has_changed_is_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = small_model(), []
    fastdiff.optimize(model)
    run(model)
    make = PackedConv._make
    monkeypatch.setattr(PackedConv, "_make", lambda self: (packed.append(self.layers[0]), make(self))[1])
    before = run(model)
    model.get_parameter("out.2.bias").data += 1  # read as it is
    with torch.no_grad():
        model.get_parameter("out.2.weight").mul_(1.1)
    _first(model).mul_(1.1)
    assert (run(model) - before).abs().max() > 0.5
    assert set(packed) == {model.out[2], model.get_submodule("middle_block.0.in_layers.2")}


def test_a_single_element_is_seen_in_time_or_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    handle = fastdiff.optimize(model)
    now = 0.0
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now)  # a look at everything takes no time now
    run(model)
    for wait in (False, True):
        before = run(model)
        _first(model)[3, 5, 1, 1] += 100
        if wait:
            now = 1.0
        else:
            handle.refresh()
        got = run(model)
        assert (got - before).abs().max() > 1e-3
        torch.testing.assert_close(got, run(_plain(model)), rtol=1e-3, atol=1e-3)


def test_what_runs_as_it_is_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    trunk._said.clear()
    model = small_model()
    fastdiff.optimize(model)
    model.get_submodule("middle_block.1.qkv").register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            run(model)
            model.get_submodule("out.2").weight.data *= 1.1
    assert [r.getMessage() for r in caplog.records] == [
        "optimize: UNet's middle_block.1 runs as it is: a hook of qkv"
    ]


def test_freed_weights_and_a_hook_are_told() -> None:
    model = small_model()
    fastdiff.optimize(model, free_weights=True)
    run(model)
    model.get_submodule("middle_block.1.qkv").register_forward_hook(lambda *_: None)
    with pytest.raises(FastdiffError, match="without hooks or exchanged layers inside"):
        run(model)


def test_a_denoise_of_its_own_is_not_passed_over() -> None:
    class Mine(UNet):
        def denoise(self, x: Tensor, emb: Tensor) -> Tensor:
            return 2 * super().denoise(x, emb)

    model = Mine(small_model().config).eval()
    with pytest.raises(FastdiffError, match="a denoise of its own, as Mine has"):
        fastdiff.optimize(model)
    diffusion = fastdiff.DiffusionConfig()
    fastdiff.sample(model, 1, steps=1, diffusion=diffusion, progress=False)


def test_global_hooks_see_every_layer() -> None:
    model, seen = small_model(), []
    fastdiff.optimize(model)
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        run(model)
    assert {m for m in model.modules() if not list(m.children())} <= set(seen)


@pytest.mark.parametrize("call", ["compiled", "exported", "traced by make_fx", "traced", "jvp"])
@torch.no_grad()
def test_compilers_and_tracers(call: str) -> None:
    """The compiled graph is left once; the others have the model's own operators in their graphs."""
    model = small_model()
    inputs = tuple(inputs_of(model).values())
    other = (0.5 * inputs[0], *inputs[1:])
    wanted = model(*other)
    fastdiff.optimize(model)
    if call == "compiled":
        torch._dynamo.reset()
        graphs: list[Any] = []
        compiled = torch.compile(model, backend=lambda graph, _: (graphs.append(graph), graph.forward)[1])
        compiled(*inputs)
        assert 1 <= len(graphs) <= 2
        assert_close(compiled(*other), wanted)
        with pytest.raises(Exception, match=r"restore\(\) the model for fullgraph=True"):
            torch.compile(model, fullgraph=True, backend="eager")(*inputs)
        torch._dynamo.reset()
    elif call == "exported":
        program = torch.export.export(model, inputs)
        assert any("fastdiff" in str(node.target) for node in program.graph.nodes)
        assert_close(program.module()(*other), wanted)
    elif call == "traced by make_fx":
        graph = make_fx(model)(*inputs)
        assert any("fastdiff" in str(node.target) for node in graph.graph.nodes)
        assert_close(graph(*other), wanted)
    elif call == "traced":
        assert_close(torch.jit.trace(model, inputs, check_trace=False)(*other), wanted)
    else:
        x, rest = inputs[0].double(), inputs[1:]
        exact, direction = copy.deepcopy(_plain(model)).double(), torch.ones_like(inputs[0])
        step = 1e-6 * direction.double()
        slope = (exact(x + step, *rest) - exact(x - step, *rest)) / 2e-6
        got = torch.func.jvp(lambda x: model(x, *rest), (inputs[0],), (direction,))[1]
        torch.testing.assert_close(got.double(), slope, rtol=1e-3, atol=1e-3)


def test_many_threads() -> None:
    """One packs, others call, one trains on a copy of the gradients: all get what a single thread gets."""
    model = small_model(resblock_updown=False)
    inputs = [inputs_of(model, n=n) for n in (1, 2, 3)]
    wanted = [run(model, **i) for i in inputs]
    fastdiff.optimize(model)
    results: list[tuple[int, Tensor]] = []

    def call(i: int) -> None:
        for _ in range(10):
            results.append((i, run(model, **inputs[i])))

    def differentiate() -> None:
        for _ in range(5):
            torch.autograd.grad(model(**inputs[0]).square().mean(), list(model.parameters()))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    threads.append(threading.Thread(target=differentiate))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    for i, result in results:
        assert_close(result, wanted[i])


def _plain(model: Any) -> Any:
    """The model without what optimize has put there."""
    twin = copy.copy(model)
    twin.__dict__.pop("denoise", None)
    return twin
