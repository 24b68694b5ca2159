"""No op depends on the state of the process, and no tensor is read as what it is not."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from case_runs import run
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import conv2d, group_norm_silu, pack_conv2d
from fastdiff.ops._case import Case
from fastdiff.ops.cases import CASES

# One of each op and layout that a kernel takes; adamw_ema's are functions that make tensors themselves.
CHOSEN = [
    c for c in CASES if not c.benchmark and not c.falls_back and c.op != "adamw_ema" and "odd" in c.name
]
CHOSEN += [
    next(c for c in CASES if c.op == op and not c.benchmark and not c.falls_back)
    for op in dict.fromkeys(c.op for c in CASES)
    if op != "adamw_ema" and op not in {c.op for c in CHOSEN}
]


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _unfilled_memory() -> Iterator[None]:
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


State = Callable[[], contextlib.AbstractContextManager[Any]]
STATES: dict[str, State] = {
    "bfloat16_by_default": lambda: _default_dtype(torch.bfloat16),
    "float16_by_default": lambda: _default_dtype(torch.float16),
    "float64_by_default": lambda: _default_dtype(torch.float64),
    "meta_by_default": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly_mode": lambda: torch.autograd.set_detect_anomaly(True),
    "unfilled_memory": _unfilled_memory,
}


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE], ids=lambda b: b.value)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("case", CHOSEN, ids=lambda c: f"{c.op}-{c.name}")
def test_no_state_changes_a_bit(case: Case, state: str, backend: Backend) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    with use_backend(backend):
        wanted = run(case.fused, case, inputs)
        got = run(case.fused, case, inputs, state=STATES[state])
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and g.device == w.device and g.stride() == w.stride()
        if state == "autocast" and backend is Backend.REFERENCE:
            continue  # plain PyTorch is what autocast is made for
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda c: f"{c.op}-{c.name}")
def test_inference_mode(case: Case) -> None:
    inputs = case.inputs(torch.float32, "cpu")
    wanted = case.fused(**inputs)
    with torch.inference_mode():
        got = case.fused(**inputs)
    got, wanted = ([r] if isinstance(r, Tensor) else r for r in (got, wanted))
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)


def test_a_failed_call_leaves_autograd_on() -> None:
    """Also while its exception, and with it the frames of the call, are kept."""
    with pytest.raises(FastdiffError) as kept:
        group_norm_silu(_x(), 5)
    weight = torch.ones(32, requires_grad=True)
    assert group_norm_silu(_x(), 8, weight).requires_grad and (2 * weight).requires_grad
    assert kept.value is not None


# --- Tensors that are not what they seem --------------------------------------------------------------------------


def _x() -> Tensor:
    return torch.randn(2, 32, 6, 5, generator=torch.Generator().manual_seed(0))


def test_a_negative_view_is_negated() -> None:
    x, weight = torch._neg_view(_x()), torch._neg_view(torch.ones(32))
    assert x.is_neg()
    torch.testing.assert_close(group_norm_silu(x, 8, weight), group_norm_silu(-_x(), 8, -torch.ones(32)))


def test_a_zero_tensor_is_zero() -> None:
    weight = torch._efficientzerotensor(32)
    assert not group_norm_silu(_x(), 8, weight).any()


@pytest.mark.parametrize("which", ["x", "weight", "scale"])
def test_a_tensor_beyond_its_storage_is_not_read(which: str) -> None:
    tensors = {"x": _x(), "weight": torch.ones(32), "scale": torch.ones(2, 32)}
    tensors[which].untyped_storage().resize_(16)
    with use_backend("cpu"), pytest.raises(FastdiffError, match="reaches beyond its storage"):
        group_norm_silu(tensors.pop("x"), 8, tensors["weight"], scale=tensors["scale"])


@pytest.mark.parametrize("name", ["bias", "affine", "image_bias", "residual", "packed", "more"])
def test_no_argument_may_be_elsewhere(name: str) -> None:
    x = _x().contiguous(memory_format=torch.channels_last)
    channels = 48 if name in ("more", "affine") else 32
    weight = torch.randn(16, channels, 3, 3)
    arguments: dict[str, Tensor] = {
        "bias": torch.ones(16),
        "affine": torch.ones(2, 3, channels),
        "image_bias": torch.ones(2, 16),
        "residual": torch.ones(2, 16, 6, 5),
        "packed": torch.ones(pack_conv2d(weight).numel()),  # type: ignore[union-attr]
        "more": torch.ones(2, 16, 6, 5).contiguous(memory_format=torch.channels_last),
    }
    elsewhere = {name: arguments[name].to("meta")}
    if name == "affine":
        elsewhere["more"] = arguments["more"]
    with pytest.raises((FastdiffError, RuntimeError, NotImplementedError)):
        _ = conv2d(x, weight, **elsewhere).sum().item()  # type: ignore[union-attr]


def test_packed_weights_that_overlap_are_not_read() -> None:
    x = _x().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 32, 3, 3)
    packed = pack_conv2d(weight)
    assert packed is not None
    with use_backend("cpu"), pytest.raises(FastdiffError, match="packed"):
        conv2d(x, weight, packed=packed[:1].expand(packed.shape))


_WITHOUT_MEMORY = """
import resource, torch
from fastdiff.ops import conv2d
torch.set_num_threads(2)
x = torch.randn(4, 512, 64, 64).contiguous(memory_format=torch.channels_last)
weight = torch.randn(64, 512, 3, 3)
y = conv2d(x[:1, :, :8, :8].contiguous(memory_format=torch.channels_last), weight)  # what is needed once
pages = int(open("/proc/self/statm").read().split()[0])
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), hard))
try:
    conv2d(x, weight)
except RuntimeError as error:
    print("said:", error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_runs_out_is_an_error_and_no_end() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "said: conv2d: can't allocate memory" in done.stdout
