"""Every op's benchmark cases with pytest-benchmark: eager PyTorch beside each backend that runs here.

    pytest benchmarks --benchmark-group-by=group

For ratios to quote, take ``python benchmarks/ratios.py``: it measures turn by turn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.backend import Backend, use_backend
from fastdiff.ops._case import Case
from fastdiff.ops._op import OPS
from fastdiff.ops.cases import CASES

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ["eager", *(b.value for b in Backend if b not in (Backend.REFERENCE, Backend.EAGER))]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("case", [c for c in CASES if c.benchmark], ids=lambda c: f"{c.op}-{c.name}")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward(benchmark: Any, case: Case, implementation: str, dtype: str) -> None:
    benchmark.group = f"{case.op} {case.name} {dtype}"
    kwargs = case.inputs(DTYPES[dtype], DEVICE)
    if implementation == "eager":
        benchmark(case.baseline or case.eager, **kwargs)
        return
    if reason := OPS[case.op].why_not(Backend(implementation)):
        pytest.skip(reason)
    with use_backend(implementation):
        got, truth = case.fused(**kwargs), case.eager(**kwargs)
        first, second = (o if isinstance(o, torch.Tensor) else o[0] for o in (got, truth))
        # A fast kernel that is wrong is worth nothing. (Random bits may differ where a probability was rounded.)
        near = torch.isclose(first.float(), second.float(), rtol=0.05, atol=0.05)
        assert float(near.float().mean()) > (0.99 if case.op == "bernoulli_step" else 0.999999)
        benchmark(case.fused, **kwargs)
    if case.elements and benchmark.stats:  # none with --benchmark-disable
        moved = case.elements * DTYPES[dtype].itemsize
        benchmark.extra_info["GB/s"] = round(moved / benchmark.stats["median"] / 1e9, 2)
