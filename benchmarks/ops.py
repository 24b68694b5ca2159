"""How fast is each op? fastdiff beside eager PyTorch, turn by turn in one run, ratios of medians.

    python benchmarks/ops.py [--only OP] [--rounds N] [--no-networks]

Prints Markdown and, of a whole run, writes ``benchmarks/results/ops-<machine>.json``. A whole run ends with U-Nets made
of the ops, as networks are trained. ``make gpu`` measures every backend, and ``torch.compile``, at the sizes of
parts/gpu_cases.py.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from parts import RESULTS
from parts.gpu_cases import cases as gpu_cases
from parts.gpu_store import Context, Store, first_line
from parts.optimizer_cases import optimizer_cases
from torch import Tensor
from tqdm import tqdm

from fastdiff.backend import Backend, candidates
from fastdiff.bench import machine, results
from fastdiff.bench.clock import Call, Timing, interleave
from fastdiff.bench.report import table
from fastdiff.bench.sides import DTYPES, SIDES, Network, call_on, network, on
from fastdiff.ops import _measured
from fastdiff.ops._case import Case
from fastdiff.ops._op import OPS
from fastdiff.ops.cases import CASES as OP_CASES

Row = dict[str, Any]
IN_PLACE = ("adamw_ema",)  # each side has inputs of its own, with the same numbers
NETWORKS = {"fashion-mnist": 16, "ddpm-cifar10": 4}  # preset -> images

CASES = [*(case for case in OP_CASES if case.benchmark), *optimizer_cases()]


def dtypes(case: Case) -> tuple[str, ...]:
    """Those that a case is timed in."""
    return ("float32",) if case.op == "adamw_ema" else ("float32", "bfloat16")


class Function(NamedTuple):
    """A side of an op: the function, and the backend that it is forced to."""

    function: Callable[..., Any]
    backend: str | None = None


def backends(op: str, device: str) -> list[str]:
    """Those with a kernel for the op here, fastest first."""
    usual = [b for b in candidates(device) if b is not Backend.REFERENCE]
    return [b.value for b in usual if OPS[op].why_not(b) is None]


def first(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def is_close(got: Tensor, want: Tensor, share: float = 0.999999) -> bool:
    """A fast kernel that is wrong is worth nothing. How right it is, the tests say."""
    scale = float(want.double().abs().max()) if want.numel() else 1.0
    near = torch.isclose(got.double(), want.double(), rtol=0.0, atol=0.05 * (scale or 1.0))
    return got.shape == want.shape and float(near.double().mean()) >= share


def gradients(
    function: Callable[..., Any], kwargs: dict[str, Any], names: tuple[str, ...], alone: bool
) -> Call:
    """A backward pass, alone or after its forward, of a weighting that is the same for all sides."""
    kwargs |= {name: kwargs[name].detach().requires_grad_() for name in names}
    leaves = [kwargs[name] for name in names]
    y = first(function(**kwargs))
    torch.manual_seed(1)
    # Drawn as for a contiguous result: sides differ in their result's layout, and get the same numbers in their own.
    grad = torch.empty_like(y).copy_(torch.randn(y.shape, dtype=y.dtype, device=y.device))
    if alone:
        return functools.partial(torch.autograd.grad, y, leaves, grad, retain_graph=True)
    return lambda: torch.autograd.grad(first(function(**kwargs)), leaves, grad)


def call_of(case: Case, direction: str, function: Callable[..., Any], kwargs: dict[str, Any]) -> Call:
    """What is timed: "forward", "backward" alone, or "training", which is both."""
    if direction == "forward":
        return functools.partial(function, **kwargs)
    return gradients(function, kwargs, case.differentiable, alone=direction == "backward")


def checked_calls(
    case: Case, dtype: str, direction: str, device: str, functions: Mapping[str, Function]
) -> tuple[dict[str, Call], dict[str, str]]:
    """A call of each side, and why a side is left out: it raises, or its result is not eager's.

    Results are compared once, before anything is timed.
    """
    calls: dict[str, Call] = {}
    wrong: dict[str, str] = {}

    shared = {} if case.op in IN_PLACE else case.inputs(DTYPES[dtype], device)

    def inputs() -> dict[str, Any]:
        return dict(shared) or case.inputs(DTYPES[dtype], device)

    is_random = case.baseline is not None and direction == "forward"  # the baseline draws other noise
    # Bits may differ where a probability was rounded.
    share = 0.99 if case.op == "bernoulli_step" else 0.999999
    want = first(call_of(case, direction, case.eager, inputs())())
    for name, (function, backend) in functions.items():
        try:
            with on(backend):
                call = call_of(case, direction, function, inputs())
                got = first(call())
            if not (is_random and function is not case.fused) and not is_close(got, want, share):
                wrong[name] = f"its {direction} is not eager's"
            else:
                calls[name] = call_on(backend, call)
        except Exception as error:  # also the compiler's, and those of a kernel that does not build
            wrong[name] = first_line(error)
    return calls, wrong


def measure(
    case: Case,
    dtype: str,
    direction: str,
    device: str,
    functions: Mapping[str, Function],
    clock: Callable[[Mapping[str, Call]], dict[str, Timing]],
) -> Row:
    """One row: every side's seconds, and the bytes and operations that the forward needs at least."""
    functions = {"eager": Function((direction == "forward" and case.baseline) or case.eager), **functions}
    with torch.set_grad_enabled(direction != "forward"):
        calls, wrong = checked_calls(case, dtype, direction, device, functions)
        times = clock(calls)
    moved, flops = case.elements * DTYPES[dtype].itemsize, case.flops
    row: Row = {"op": case.op, "case": case.name, "dtype": dtype, "direction": direction, "wrong": wrong}
    row |= {"bytes": moved, "flops": flops} if direction == "forward" else {"bytes": 0, "flops": 0}
    return row | {"seconds": {name: asdict(timing) for name, timing in times.items()}}


def ratio(row: Row, side: str = "fastdiff") -> float:
    return row["seconds"]["eager"]["median"] / row["seconds"][side]["median"]


def measure_ops(device: str, only: str | None, rounds: int) -> list[Row]:
    """fastdiff as it chooses its kernels, beside eager PyTorch."""
    rows = []
    chosen = [case for case in CASES if f"{case.op} {case.name}".startswith(only or "")]
    for case in tqdm(chosen, desc="ops", leave=False):
        for dtype in dtypes(case):
            for direction in ("forward", "backward") if case.differentiable else ("forward",):
                functions = {"fastdiff": Function(case.fused)}
                clock = functools.partial(interleave, rounds=rounds)
                rows.append(measure(case, dtype, direction, device, functions, clock))
    return rows


def forward(net: Network) -> Tensor:
    with torch.inference_mode():
        net.model.eval()
        return net()


def forward_backward(net: Network) -> None:
    """What a training step does before the optimizer's part."""
    net.model.train()
    net().square().mean().backward()
    net.model.zero_grad(set_to_none=True)


def measure_networks(device: str, rounds: int) -> list[Row]:
    """U-Nets in float32; eager PyTorch in both memory layouts, of which the faster one counts."""
    sides = [side for side in SIDES.values() if not side.compiled]
    rows = []
    for preset, batch in NETWORKS.items():
        made = network(preset, batch, device)
        cast = {side: made.cast(torch.float32, side.memory_format) for side in sides}
        for direction, run in (("forward", forward), ("forward and backward", forward_backward)):
            times = interleave({s.name: s.call(run, net) for s, net in cast.items()}, rounds=rounds)
            eager = min((times[s.name] for s in sides if s.backend == "eager"), key=lambda t: t.median)
            row = {"op": "U-Net", "case": f"{preset}, batch {batch}", "dtype": "float32"}
            seconds = {"eager": asdict(eager), "fastdiff": asdict(times["fastdiff"])}
            rows.append(row | {"direction": direction, "wrong": {}, "seconds": seconds})
    return rows


def summary(rows: list[Row]) -> str:
    """Per op, direction and dtype: the median ratio over the cases, and the smallest and largest."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["direction"], row["dtype"]), []).append(ratio(row))
    body = []
    for key, ratios in groups.items():
        span = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        body.append((*key, str(len(ratios)), f"**{statistics.median(ratios):.2f}**{span}"))
    return table(("", "", "dtype", "cases", "times as fast as eager (least to most)"), body)


def details(rows: list[Row]) -> str:
    """Every row: times, their ratio, and the bandwidth that the least traffic makes."""
    body = []
    for row in rows:
        eager, own = (row["seconds"][side]["median"] for side in ("eager", "fastdiff"))
        speed = f"{row['bytes'] / own / 1e9:.1f}" if row.get("bytes") else ""
        cells = (row["op"], row["direction"], row["case"], row["dtype"], f"{eager * 1e3:.3f}")
        body.append((*cells, f"{own * 1e3:.3f}", f"**{eager / own:.2f}x**", speed))
    return table(("", "", "case", "dtype", "eager ms", "fastdiff ms", "ratio", "GB/s"), body)


def main(only: str | None = None, rounds: int = 15, networks: bool = True) -> None:
    """Measure and print.

    Args:
        only: Leave out the networks and the cases whose op and name do not begin so: "conv2d", "adamw_ema ddpm".
        rounds: Number of turns of each side.
        networks: Also measure whole U-Nets.
    """
    device = machine.default_device()
    rows = measure_ops(device, only, rounds)
    for row in [row for row in rows if row["wrong"]]:
        print(f"left out: {row['op']}, {row['case']}, {row['dtype']}: {row['wrong']}")
    rows = [row for row in rows if not row["wrong"]]
    if networks and only is None:
        rows += measure_networks(device, max(5, rounds // 3))
    about = machine.describe(device)
    print(machine.in_words(about), summary(rows), details(rows), sep="\n\n")
    if only is None:
        rows = [row | {"ratio": ratio(row)} for row in rows]
        results.write(RESULTS / results.file_name("ops", device), about, rows=rows)


def compiled(function: Callable[..., Any], dry: bool) -> Callable[..., Any]:
    """Launches through CUDA graphs would be timed against launches without: left out on both sides."""
    torch.compiler.reset()
    how: dict[str, Any] = {"backend": "aot_eager"} if dry else {"mode": "max-autotune-no-cudagraphs"}
    return torch.compile(function, fullgraph=True, dynamic=False, **how)


def ceiling_seconds(store: Store, moved: float, flops: float, dtype: str) -> float | None:
    """The least that the memory and the matrix units allow, by the measured ceilings."""
    found = store.rows.get("ceilings/speed")
    if found is None or not moved:
        return None
    peak = found["matmul_tflops"].get(dtype if dtype != "float32" else "tf32")
    return max(moved / (found["copy_gb_per_s"] * 1e9), flops / (peak * 1e12) if peak else 0.0)


def _measure_on_gpu(
    context: Context, case: Case, dtype: str, direction: str, key: str, compile_: bool
) -> None:
    names = backends(case.op, context.device)
    if not names:
        context.store.skip(key, f"{case.op} has no kernel here")
        return
    functions = {name: Function(case.fused, name) for name in names}
    if compile_:
        functions["compile"] = Function(compiled(case.baseline or case.eager, context.dry))
    row = measure(case, dtype, direction, context.device, functions, context.interleave)
    # The class that the dispatch will ask for: of the operator's first argument.
    tensors = (v for v in case.inputs(DTYPES[dtype], context.device).values() if isinstance(v, Tensor))
    row["class"] = _measured.case_class(next(tensors))
    row["ceiling_seconds"] = ceiling_seconds(context.store, row["bytes"], row["flops"], dtype)
    context.store.put(key, row)


def run(context: Context) -> None:
    """The part of ``make gpu``: all sides but the compiler first, for it takes seconds a case."""
    for compile_ in (False, True):
        for case in gpu_cases(context.dry):
            for dtype in ("bfloat16", "float32") if not compile_ else ("bfloat16",):
                for direction in ("forward", "backward") if case.differentiable else ("forward",):
                    key = f"ops{'-compile' * compile_}/{case.op}/{case.name}/{dtype}/{direction}"
                    args = (context, case, dtype, direction, key, compile_)
                    seconds = 15.0 if compile_ and not context.dry else 2.0
                    context.measured(key, seconds, functools.partial(_measure_on_gpu, *args))


if __name__ == "__main__":
    import tyro

    tyro.cli(main, description=__doc__)
