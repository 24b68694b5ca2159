"""Each op against eager PyTorch, torch.compile and the ceiling: forward, and backward where there is one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from gpu_cases import cases
from gpu_context import Context, first_line
from torch import Tensor

from fastdiff.backend import Backend, candidates, use_backend
from fastdiff.ops import _measured
from fastdiff.ops._case import Case
from fastdiff.ops._op import OPS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Call = Callable[[], Any]


def backends(op: str, device: str) -> list[str]:
    """Those with a kernel for the op here, fastest first."""
    usual = [b for b in candidates(device) if b is not Backend.REFERENCE]
    return [b.value for b in usual if OPS[op].why_not(b) is None]


def forced(backend: str, function: Call) -> Call:
    """The call on one backend; "eager" is PyTorch's own calls."""

    def run() -> Any:
        with use_backend(backend):
            return function()

    return run


def compiled(function: Callable[..., Any], dry: bool) -> Callable[..., Any]:
    """Launches through CUDA graphs would be timed against launches without: left out on both sides."""
    torch.compiler.reset()
    how: dict[str, Any] = {"backend": "aot_eager"} if dry else {"mode": "max-autotune-no-cudagraphs"}
    return torch.compile(function, fullgraph=True, dynamic=False, **how)


def first(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def is_close(got: Tensor, want: Tensor) -> bool:
    """A fast kernel that is wrong is worth nothing. How right it is, the tests say."""
    scale = float(want.double().abs().max()) or 1.0
    return got.shape == want.shape and float((got.double() - want.double()).abs().max()) <= 0.05 * scale


def backward(
    function: Callable[..., Any], kwargs: dict[str, Any], leaves: list[Tensor], context: Any
) -> Call:
    """The backward pass alone, of a weighting that is the same for all."""
    with context, torch.enable_grad():
        y = first(function(**kwargs))
    torch.manual_seed(1)
    # Drawn as for a contiguous result: sides differ in their result's layout, and get the same numbers in their own.
    grad = torch.empty_like(y).copy_(torch.randn(y.shape, dtype=y.dtype, device=y.device))
    return functools.partial(torch.autograd.grad, y, leaves, grad, retain_graph=True)


def sides_of(
    case: Case, kwargs: dict[str, Any], direction: str, names: list[str], compile_: Any
) -> dict[str, Call]:
    """What takes turns: eager, each backend, and a compiled function if there is one."""
    eager = case.baseline or case.eager
    functions: dict[str, Callable[..., Any]] = {"eager": eager} | dict.fromkeys(names, case.fused)
    if compile_ is not None:
        functions["compile"] = compile_
    leaves = [kwargs[name] for name in case.differentiable] if direction == "backward" else []
    sides: dict[str, Call] = {}
    for name, function in functions.items():
        force = use_backend(name) if name in names else contextlib.nullcontext()
        if direction == "backward":
            call: Call = backward(function, kwargs, leaves, force)
        else:
            call = functools.partial(function, **kwargs)
        sides[name] = forced(name, call) if name in names else call
    return sides


def check(case: Case, kwargs: dict[str, Any], sides: dict[str, Call], direction: str) -> dict[str, str]:
    """Why a side is not timed: it raises, or its result is not the eager one's."""
    wrong: dict[str, str] = {}
    is_random = case.baseline is not None  # the baseline draws other noise
    want = first(case.eager(**kwargs) if is_random else sides["eager"]())
    for name in [n for n in sides if n != "eager"]:
        try:
            got = first(sides[name]())
            if not (is_random and name == "compile") and not is_close(got, want):
                wrong[name] = f"its {direction} is not eager's"
        except Exception as error:  # also the compiler's, and those of a kernel that does not build
            wrong[name] = first_line(error)
        if name in wrong:
            del sides[name]
    return wrong


def ceiling_seconds(store: Any, moved: float, flops: float, dtype: str) -> float | None:
    """The least that the memory and the matrix units allow, by the measured ceilings."""
    found = store.rows.get("ceilings/speed")
    if found is None:
        return None
    peak = found["matmul_tflops"].get(dtype if dtype != "float32" else "tf32")
    return max(moved / (found["copy_gb_per_s"] * 1e9), flops / (peak * 1e12) if peak else 0.0)


def measure(context: Context, case: Case, dtype: str, direction: str, key: str, with_compile: bool) -> None:
    names = backends(case.op, context.device)
    if not names:
        context.store.skip(key, f"{case.op} has no kernel here")
        return
    kwargs = case.inputs(DTYPES[dtype], context.device)
    if direction == "backward":
        kwargs |= {n: kwargs[n].detach().requires_grad_() for n in case.differentiable}
    function = compiled(case.baseline or case.eager, context.dry) if with_compile else None
    with torch.set_grad_enabled(direction == "backward"):
        sides = sides_of(case, kwargs, direction, names, function)
        wrong = check(case, kwargs, sides, direction)
        times = context.interleave(sides)
    moved = case.elements * DTYPES[dtype].itemsize if direction == "forward" else 0
    flops = case.flops if direction == "forward" else 0
    row = {"op": case.op, "case": case.name, "dtype": dtype, "direction": direction, "wrong": wrong}
    # The class that the dispatch will ask for: of the operator's first argument.
    row["class"] = _measured.case_class(next(v for v in kwargs.values() if isinstance(v, Tensor)))
    row |= {"bytes": moved, "flops": flops, "seconds": {n: asdict(t) for n, t in times.items()}}
    row["ceiling_seconds"] = ceiling_seconds(context.store, moved, flops, dtype) if moved else None
    context.store.put(key, row)


def run(context: Context) -> None:
    """All sides but the compiler first, for it takes seconds a case."""
    for with_compile in (False, True):
        for case in cases(context.dry):
            for dtype in DTYPES if not with_compile else ["bfloat16"]:
                for direction in ("forward", "backward") if case.differentiable else ("forward",):
                    key = f"ops{'-compile' * with_compile}/{case.op}/{case.name}/{dtype}/{direction}"
                    if not context.wanted(key, 15.0 if with_compile and not context.dry else 2.0):
                        continue
                    try:
                        measure(context, case, dtype, direction, key, with_compile)
                    except (
                        Exception
                    ) as error:  # one case's failure is its own: reported, the rest is measured
                        context.store.skip(key, first_line(error))
