"""Every op's benchmark cases with pytest-benchmark: eager PyTorch, ``torch.compile`` and each backend that runs here.

    pytest benchmarks --benchmark-group-by=group      # or param:case

The compiler gets the eager calls, in float32 and in one memory layout where a case has two. For ratios to quote, take
``python benchmarks/ops.py``: it measures turn by turn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops import CASES, Function, checked_calls, dtypes
from parts.compiler import Compiler

from fastdiff.backend import Backend
from fastdiff.bench.machine import default_device
from fastdiff.bench.sides import DTYPES
from fastdiff.ops._op import OPS

DEVICE = default_device()
IMPLEMENTATIONS = [
    "eager",
    *(b.value for b in Backend if b not in (Backend.REFERENCE, Backend.EAGER)),
    "compiled",
]
BENCHMARKED = {f"{case.op}-{case.name}": case for case in CASES if case.benchmark}
# What is compared runs one after the other, so that a busy machine slows it alike. Cases go by their names, for these
# are what `--benchmark-group-by=param:case` prints.
PARAMETERS = [
    pytest.param(implementation, name, dtype, id=f"{implementation}-{name}-{dtype}")
    for name, case in BENCHMARKED.items()
    for dtype in dtypes(case)
    for implementation in IMPLEMENTATIONS
    if implementation != "compiled" or (dtype == "float32" and "contiguous" not in name)
]


@pytest.mark.parametrize(("implementation", "case", "dtype"), PARAMETERS)
def test_forward(benchmark: Any, compiler: Compiler, implementation: str, case: str, dtype: str) -> None:
    chosen = BENCHMARKED[case]
    benchmark.group = f"{chosen.op} {chosen.name} {dtype}"
    benchmark.extra_info |= {
        "kind": "op",
        "what": chosen.op,
        "case": chosen.name,
        "dtype": dtype,
        "side": implementation,
        "bytes": chosen.elements * DTYPES[dtype].itemsize,
        "flops": chosen.flops,
    }
    eager: Any = chosen.baseline or chosen.eager
    with torch.inference_mode():
        if implementation == "compiled":
            kwargs = chosen.inputs(DTYPES[dtype], DEVICE)
            call = compiler.compiled(eager, lambda compiled: compiled(**kwargs))
            benchmark(call, **kwargs)
        elif implementation == "eager":
            benchmark(eager, **chosen.inputs(DTYPES[dtype], DEVICE))
        elif reason := OPS[chosen.op].why_not(Backend(implementation)):
            pytest.skip(reason)
        else:
            functions = {"eager": Function(eager), "own": Function(chosen.fused, implementation)}
            calls, wrong = checked_calls(chosen, dtype, "forward", DEVICE, functions)
            assert not wrong
            benchmark(calls["own"])
    if benchmark.stats:  # none with --benchmark-disable
        speed = benchmark.extra_info["bytes"] / benchmark.stats["median"]
        benchmark.extra_info["GB/s"] = round(speed / 1e9, 2)
