"""Every op's benchmark cases with pytest-benchmark: eager PyTorch, ``torch.compile`` and each backend that runs here.

    pytest benchmarks --benchmark-group-by=group

The compiler gets the eager calls, in float32 and in one memory layout where a case has two. For ratios to quote, take
``python benchmarks/ratios.py``: it measures turn by turn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling import Compiler
from suite_cases import CASES, DTYPES, dtypes

from fastdiff.backend import Backend, use_backend
from fastdiff.ops._case import Case
from fastdiff.ops._op import OPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = [
    "eager",
    *(b.value for b in Backend if b not in (Backend.REFERENCE, Backend.EAGER)),
    "compiled",
]
# What is compared runs one after the other, so that a busy machine slows it alike.
PARAMETERS = [
    pytest.param(implementation, case, dtype, id=f"{implementation}-{case.op}-{case.name}-{dtype}")
    for case in CASES
    for dtype in dtypes(case)
    for implementation in IMPLEMENTATIONS
    if implementation != "compiled" or (dtype == "f32" and "contiguous" not in case.name)
]


@pytest.mark.parametrize(("implementation", "case", "dtype"), PARAMETERS)
def test_forward(benchmark: Any, compiler: Compiler, implementation: str, case: Case, dtype: str) -> None:
    benchmark.group = f"{case.op} {case.name} {dtype}"
    benchmark.extra_info |= {
        "kind": "op",
        "what": case.op,
        "case": case.name,
        "dtype": dtype,
        "side": implementation,
        "bytes": case.elements * DTYPES[dtype].itemsize,
        "flops": case.flops,
    }
    function: Any = case.baseline or case.eager
    kwargs = case.inputs(DTYPES[dtype], DEVICE)
    with torch.inference_mode():
        if implementation == "compiled":
            function = compiler(function, lambda compiled: compiled(**kwargs))
        if implementation in ("eager", "compiled"):
            benchmark(function, **kwargs)
        else:
            if reason := OPS[case.op].why_not(Backend(implementation)):
                pytest.skip(reason)
            with use_backend(implementation):
                _check(case, dtype)
                benchmark(case.fused, **kwargs)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["GB/s"] = round(
            benchmark.extra_info["bytes"] / benchmark.stats["median"] / 1e9, 2
        )


def _check(case: Case, dtype: str) -> None:
    """A fast kernel that is wrong is worth nothing. (Random bits may differ where a probability was rounded.)"""
    results = (f(**case.inputs(DTYPES[dtype], DEVICE)) for f in (case.fused, case.eager))
    first, second = (o if isinstance(o, torch.Tensor) else o[0] for o in results)
    near = torch.isclose(first.float(), second.float(), rtol=0.05, atol=0.05)
    assert float(near.float().mean()) > (0.99 if case.op == "bernoulli_step" else 0.999999)
