"""The density past PyTorch: the same values, derivatives and errors, and calls that are not for it go PyTorch's way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.backend import use_backend
from fastdiff.decision import direct, log_pdf, log_pdf_and_slopes
from fastdiff.errors import FastdiffError

RT = np.random.default_rng(0).uniform(0.05, 4, 203)
CHOICE = np.random.default_rng(1).integers(0, 2, 203)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"v": 1.0, "a": 2.0},
    "all": {"v": -0.7, "a": 1.4, "z": 0.35, "t0": 0.3, "sv": 0.6},
    "ratcliff": {"v": 0.3, "a": 0.12, "z": 0.6, "s": 0.1, "t0": 0.2, "sv": 0.08},
    "whole-numbers": {"v": 1, "a": 2, "sz": 0, "st0": 0, "t0": np.float64(0.1)},
}
compiled = pytest.mark.skipif(direct.log_pdf is direct._declines, reason="fastdiff._C is not built")


class _Calls(TorchDispatchMode):
    """Counts PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@compiled
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_same_values_and_derivatives_as_by_autograd(model: dict[str, Any]) -> None:
    assert direct.log_pdf(RT, CHOICE, **model) is not None
    values, (same, slopes) = log_pdf(RT, CHOICE, **model), log_pdf_and_slopes(RT, CHOICE, **model)
    with use_backend("cpu"):
        wanted, (_, wanted_slopes) = log_pdf(RT, CHOICE, **model), log_pdf_and_slopes(RT, CHOICE, **model)
    assert values.dtype == slopes.dtype == torch.float64 and slopes.shape == (5, 203)
    torch.testing.assert_close(values, wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(slopes, wanted_slopes, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(values, same, rtol=0, atol=0)
    assert (values.isinf() == torch.from_numpy(model.get("t0", 0.0) >= RT)).all()


def test_known_values() -> None:
    """v = 1, a = 2, t = 1, evaluated independently, and the slopes by v: -x - v t at 0, a - x - v t at a."""
    values, slopes = log_pdf_and_slopes(np.ones(2), np.array([0, 1]), 1.0, 2.0)
    assert values.exp().tolist() == pytest.approx([0.0510259880, 0.3770338880], abs=5e-11)
    assert slopes[0].tolist() == pytest.approx([-2.0, 0.0], abs=1e-14)


@compiled
@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int32", "int64", "float32", "float64"])
def test_choices_of_every_kind(kind: str) -> None:
    found = direct.log_pdf(RT, CHOICE.astype(kind), 1.0, 2.0)
    np.testing.assert_array_equal(found, direct.log_pdf(RT, CHOICE, 1.0, 2.0))


@compiled
def test_columns_of_a_table_and_one_choice_for_all() -> None:
    table = np.stack([RT, np.ones_like(RT)], 1)
    found = direct.log_pdf(table[:, 0], table[:, 1], 1.0, 2.0)
    np.testing.assert_array_equal(found, direct.log_pdf(RT, 1, 1.0, 2.0))
    np.testing.assert_array_equal(found[::-1], direct.log_pdf(RT[::-1], True, 1.0, 2.0))


ELSEWHERE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "list": (RT.tolist(), CHOICE, {}),
    "float32": (RT.astype("float32"), CHOICE, {}),
    "big-endian": (RT.astype(">f8"), CHOICE, {}),
    "table": (RT[:200].reshape(2, 100), CHOICE[:200].reshape(2, 100), {}),
    "both-sides": (RT, np.array([[0], [1]]), {}),
    "tensor": (torch.from_numpy(RT), CHOICE, {}),
    "one-time": (0.6, CHOICE, {}),
    "batch": (RT, CHOICE, {"v": np.linspace(0, 1, 203)}),
    "absolute": (RT, CHOICE, {"z": 0.9, "z_mode": "absolute"}),
    "middle": (RT, CHOICE, {"t0": 0.1, "t0_mode": "mid"}),
    "sz": (RT[:20], CHOICE[:20], {"sz": 0.2}),
    "st0": (RT[:20], CHOICE[:20], {"t0": 0.1, "st0": 0.2}),
}


@pytest.mark.parametrize(("rt", "choice", "change"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_other_calls_go_through_pytorch(rt: Any, choice: Any, change: dict[str, Any]) -> None:
    """Declined, and right: derivatives by differences of the values."""
    model: dict[str, Any] = {"v": 0.7, "a": 1.8, "z": 0.4, "t0": 0.02, "sv": 0.5} | change
    assert direct.log_pdf(rt, choice, **model) is None
    values, slopes = log_pdf_and_slopes(rt, choice, **model)
    torch.testing.assert_close(values, log_pdf(rt, choice, **model), rtol=1e-13, atol=1e-13)
    assert slopes.shape == (5, *values.shape) and not slopes.requires_grad
    for name, slope in zip(("v", "a", "z", "t0", "sv"), slopes, strict=True):
        ahead, behind = (log_pdf(rt, choice, **(model | {name: model[name] + h})) for h in (1e-5, -1e-5))
        known = ahead.isfinite() & behind.isfinite()
        assert known.sum() > 15
        torch.testing.assert_close(slope[known], ((ahead - behind) / 2e-5)[known], rtol=1e-5, atol=1e-5)


WRONG: dict[str, tuple[Any, Any, str]] = {
    "nan": (np.array([0.5, math.nan]), 1, "rt must be finite, got nan"),
    "infinite": (np.array([math.inf, 0.5]), 1, "rt must be finite, got inf"),
    "choice": (RT, 2, "choice must be 1 (upper) or 0 (lower); leave timeouts out, got 2"),
    "choices": (
        RT,
        np.where(CHOICE, 1, -1),
        "choice must be 1 (upper) or 0 (lower); leave timeouts out, got -1",
    ),
}


@pytest.mark.parametrize(("rt", "choice", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("function", [log_pdf, log_pdf_and_slopes])
def test_errors_are_kept(function: Any, rt: Any, choice: Any, message: str) -> None:
    with pytest.raises(FastdiffError) as raised:
        function(rt, choice, 1.0, 2.0)
    assert str(raised.value) == message


def test_arguments_that_are_missing_or_given_twice() -> None:
    for arguments, named in (
        (([0.5], 1, 1.0), {}),
        (([0.5], 1, 1.0, 2.0), {"v": 1.0}),
        (([0.5], 1, 1.0, 2.0), {"b": 1}),
    ):
        with pytest.raises(TypeError):
            log_pdf(np.array(arguments[0]), *arguments[1:], **named)


@compiled
def test_hardly_an_operator_of_pytorch_is_called() -> None:
    """What a call costs beyond the kernel is the way to it."""
    with _Calls() as calls:
        log_pdf(RT, CHOICE, 1.0, 2.0, 0.4, 0.02, sv=0.3)
        log_pdf_and_slopes(RT, CHOICE, 1.0, 2.0, 0.4, 0.02, sv=0.3)
    assert calls.count <= 3  # one for each result: it becomes a tensor
    with _Calls() as calls:
        log_pdf(torch.from_numpy(RT), CHOICE, 1.0, 2.0, 0.4, 0.02, sv=0.3)
    assert calls.count > 10
