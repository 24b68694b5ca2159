"""Calls of ops whose arguments were tampered with: the reference's answer, or one sentence; never another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mutate import rounds
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.ops._case import Case
from fastdiff.ops.cases import CASES

# By op; adamw_ema's cases are functions that make the op's lists themselves.
BY_OP: dict[str, list[Case]] = {}
for _case in CASES:
    if not _case.benchmark and _case.op != "adamw_ema":
        BY_OP.setdefault(_case.op, []).append(_case)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.complex64)
# What says that arguments do not fit: fastdiff's own error, or PyTorch's of a call that never reached an op.
SENTENCES = (ValueError, RuntimeError, TypeError, NotImplementedError, IndexError, AttributeError)

Tamper = Callable[[Tensor, np.random.Generator], Any]


def _other_size(t: Tensor, rng: np.random.Generator) -> Tensor:
    sizes = list(t.shape) or [1]
    sizes[int(rng.integers(len(sizes)))] = int(rng.integers(0, 5))
    return torch.zeros(sizes, dtype=t.dtype)


def _every_other(t: Tensor, rng: np.random.Generator) -> Tensor:
    """The same values, twice as far apart."""
    return torch.stack([t, t], dim=-1).flatten()[::2].reshape(t.shape) if t.numel() else t


def _spread(t: Tensor, rng: np.random.Generator) -> Tensor:
    strides = [2 * s for s in t.stride()]
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True)) if t.numel() else 0
    wide = torch.zeros(extent, dtype=t.dtype).as_strided(t.shape, strides)
    return t if 0 in t.stride() else wide.copy_(t)


def _one_everywhere(t: Tensor, rng: np.random.Generator) -> Tensor:
    return t.flatten()[:1].expand(t.numel()).reshape(t.shape) if t.numel() else t


def _without_storage(t: Tensor, rng: np.random.Generator) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


TAMPERS: dict[str, Tamper] = {
    "dtype": lambda t, rng: t.to(DTYPES[int(rng.integers(len(DTYPES)))]),
    "size": _other_size,
    "dimension": lambda t, rng: t[None] if rng.random() < 0.5 or not t.dim() or not len(t) else t[0],
    "transposed": lambda t, rng: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t,
    "every_other": _every_other,
    "spread": _spread,
    "one_everywhere": _one_everywhere,
    "elsewhere": lambda t, rng: t.to("meta"),
    "without_storage": _without_storage,
    "negative_view": lambda t, rng: torch._neg_view(-t) if t.is_floating_point() else t,
    "missing": lambda t, rng: None,
    "a_number": lambda t, rng: 1.0,
}


def _tamper(arguments: dict[str, Any], rng: np.random.Generator) -> list[tuple[str, str]]:
    """One or two changes of tensors, in place. -> name and kind of each."""
    names, changes = [k for k, v in arguments.items() if isinstance(v, Tensor)], []
    for _ in range(int(rng.integers(1, 3))):
        name = names[int(rng.integers(len(names)))]
        kind = list(TAMPERS)[int(rng.integers(len(TAMPERS)))]
        # Without its storage PyTorch can do no more with a tensor, nor with one that is nowhere.
        if not isinstance(arguments[name], Tensor) or {(name, "without_storage"), (name, "elsewhere")} & set(
            changes
        ):
            continue
        arguments[name] = TAMPERS[kind](arguments[name], rng)
        changes.append((name, kind))
    return changes


def _result(case: Case, arguments: dict[str, Any], backend: str | None) -> list[Tensor] | str:
    """What the call gives, or that it says no."""
    try:
        if backend is None:
            results = case.fused(**arguments)
        else:
            with use_backend(backend):
                results = case.fused(**arguments)
    except SENTENCES:
        return "no"
    return [results] if isinstance(results, Tensor) else list(results)


@pytest.mark.parametrize("op", BY_OP)
def test_tampered_calls(op: str) -> None:
    for number in rounds(60):
        rng = np.random.default_rng([number, len(op), ord(op[0])])
        case = BY_OP[op][int(rng.integers(len(BY_OP[op])))]
        dtype = DTYPES[int(rng.integers(3))]
        arguments = case.inputs(dtype, "cpu")
        changes = _tamper(arguments, rng)
        got, wanted = _result(case, arguments, None), _result(case, arguments, "reference")
        halves = any(isinstance(v, Tensor) and v.dtype in DTYPES[1:3] for v in arguments.values())
        what = f"round {number}: {case.name}, {dtype}, {changes}"
        if isinstance(wanted, str) or isinstance(got, str):
            assert got == wanted, what
            continue
        for g, w in zip(got, wanted, strict=True):
            assert g.shape == w.shape and g.dtype == w.dtype and g.device == w.device, what
            if g.device.type == "meta":
                continue
            tolerance = 0.05 if halves else 2e-3
            size = max(1.0, float(w[w.isfinite()].abs().max()) if w.isfinite().any() else 1.0)
            torch.testing.assert_close(
                g.double(),
                w.double(),
                rtol=tolerance,
                atol=tolerance * size,
                equal_nan=True,
                msg=lambda m, what=what: what + m,
            )
