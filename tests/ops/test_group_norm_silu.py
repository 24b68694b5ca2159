"""group_norm_silu beyond the cases: errors, a value by hand, NaN and infinity, fall-backs, foreign gradients."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import backend as backend_module
from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import group_norm_silu
from fastdiff.ops.group_norm_silu import eager

both_backends = pytest.mark.parametrize("backend", ["reference", "cpu"])
both_layouts = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


def _x(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(memory_format=layout)


@both_backends
def test_by_hand(backend: str) -> None:
    # Two groups of (-1, 1) and (0, 4): means 0 and 2, deviations 1 and 2.
    x = torch.tensor([[-1.0, 1.0, 0.0, 4.0]])
    weight, bias = torch.tensor([1.0, 2.0, 1.0, -3.0]), torch.tensor([0.0, 0.5, -1.0, 0.0])
    scale, shift = torch.tensor([[0.0, 1.0, -0.5, 0.0]]), torch.tensor([[0.25, 0.0, 0.0, 1.0]])
    h = [-0.75, 5.0, -1.0, -2.0]
    expected = [v / (1 + math.exp(-v)) for v in h]
    with use_backend(backend):
        y = group_norm_silu(x, 2, weight, bias, scale=scale, shift=shift, eps=0.0)
        assert y.flatten().tolist() == pytest.approx(expected, rel=1e-6)
        y = group_norm_silu(x, 2, weight, bias, scale=scale, shift=shift, eps=0.0, silu=False)
    assert y.flatten().tolist() == pytest.approx(h, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, r"x must be a floating-point tensor \[N, C, \*\], got torch.float32 \[8\]"),
        ({"x": torch.zeros(2, 8, dtype=torch.int64)}, "floating-point tensor .* got torch.int64"),
        ({"num_groups": 3}, "num_groups=3 does not divide the 8 channels"),
        ({"num_groups": 0}, "num_groups=0 does not divide"),
        ({"weight": torch.ones(7)}, r"weight must have shape \[8\], got \[7\]"),
        ({"weight": torch.ones(1, 8)}, r"weight must have shape \[8\], got \[1, 8\]"),
        ({"scale": torch.ones(8)}, r"scale must have shape \[2, 8\], got \[8\]"),
        ({"scale": torch.ones(1, 8)}, r"scale must have shape \[2, 8\], got \[1, 8\]"),
        ({"shift": torch.ones(2, 8, 4)}, r"shift must have shape \[2, 8\], got \[2, 8, 4\]"),
        ({"bias": torch.ones(8, dtype=torch.float64)}, "bias must be float32 or torch.float32 like x, got"),
        (
            {"shift": torch.ones(2, 8, dtype=torch.bfloat16)},
            "shift must be float32 or .*, got torch.bfloat16",
        ),
        ({"weight": torch.ones(8, device="meta")}, "weight is on meta, x is on cpu"),
        ({"scale": torch.ones(2, 8, device="meta")}, "scale is on meta, x is on cpu"),
    ],
)
def test_errors_say_what_was_given(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FastdiffError, match=f"^group_norm_silu: .*{message}"):
        group_norm_silu(**{"x": torch.zeros(2, 8, 4, 4), "num_groups": 4} | change)


def test_a_forced_backend_says_why_it_cannot() -> None:
    with (
        use_backend("cpu"),
        pytest.raises(FastdiffError, match="cannot run on the cpu backend: torch.float64 is not among"),
    ):
        group_norm_silu(torch.zeros(2, 8, 4, dtype=torch.float64), 4)


def test_a_fall_back_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend_module, "_logged", set())
    x = _x(2, 8, 6, 6).transpose(2, 3)[:, :, ::2]
    with caplog.at_level(logging.WARNING, "fastdiff"):
        got = [group_norm_silu(x, 4) for _ in range(3)]
    assert [r.message for r in caplog.records] == [
        "group_norm_silu: not on the cpu backend: x with shape [2, 8, 3, 6] and strides [288, 36, 2, 6]"
        " is neither contiguous nor channels_last"
    ]
    torch.testing.assert_close(got[2], eager.group_norm_silu(x, 4))


def test_float64_stays_float64() -> None:
    x = _x(2, 8, 5, 5).double()
    y = group_norm_silu(x, 4)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, eager.group_norm_silu(x, 4), rtol=1e-13, atol=1e-13)


@both_backends
@both_layouts
def test_half_precision_takes_float32_parameters(backend: str, layout: torch.memory_format) -> None:
    x = _x(2, 8, 5, 5, layout=layout).bfloat16()
    weight, bias = 1 + 0.1 * _x(8), 0.1 * _x(8)
    scale = _x(2, 16)[:, :8].bfloat16()
    with use_backend(backend):
        y = group_norm_silu(x, 4, weight, bias, scale=scale[..., None, None])
    expected = eager.group_norm_silu(x.double(), 4, weight.double(), bias.double(), scale=scale.double())
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-6)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=layout)


@both_backends
@both_layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_stay_in_their_group(
    backend: str, layout: torch.memory_format, dtype: torch.dtype, bad: float
) -> None:
    x = _x(2, 32, 9, 9, layout=layout).to(dtype)
    with use_backend(backend):
        clean = group_norm_silu(x, 8)
        x[1, 5, 4, 7] = bad  # group 1 of image 1
        y = group_norm_silu(x, 8)
    assert y[1, 4:8].isnan().all()
    others = torch.ones_like(y, dtype=torch.bool)
    others[1, 4:8] = False
    assert torch.equal(y[others], clean[others])


@both_backends
@both_layouts
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_stays_in_its_group(backend: str, layout: torch.memory_format, bad: float) -> None:
    x = _x(2, 32, 9, 9, layout=layout).requires_grad_()
    grad = torch.ones(2, 32, 9, 9)
    grad[0, 31, 8, 8] = bad
    with use_backend(backend):
        (dx,) = torch.autograd.grad(group_norm_silu(x, 8), x, grad)
    assert not dx[0, 28:].isfinite().any()
    assert dx[0, :28].isfinite().all() and dx[1].isfinite().all()


@both_backends
@both_layouts
@pytest.mark.parametrize("foreign", ["other layout", "expanded", "strided"])
def test_a_gradient_in_any_layout(backend: str, layout: torch.memory_format, foreign: str) -> None:
    x = _x(2, 8, 6, 6, layout=layout).requires_grad_()
    weight, bias = _x(8).requires_grad_(), _x(8).requires_grad_()
    other = torch.channels_last if layout is torch.contiguous_format else torch.contiguous_format
    grad = {
        "other layout": _x(2, 8, 6, 6).to(memory_format=other),
        "expanded": torch.tensor(0.5).expand(2, 8, 6, 6),
        "strided": _x(2, 8, 6, 12)[..., ::2],
    }[foreign]
    assert grad.stride() != x.stride()
    with use_backend(backend):
        got = torch.autograd.grad(group_norm_silu(x, 4, weight, bias), (x, weight, bias), grad)
    expected = torch.autograd.grad(eager.group_norm_silu(x, 4, weight, bias), (x, weight, bias), grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert got[0].is_contiguous(memory_format=layout)


@both_backends
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=["no image", "no pixel"])
def test_nothing_has_zero_gradients(backend: str, shape: tuple[int, ...]) -> None:
    n = shape[0]
    leaves = [torch.zeros(shape), torch.ones(8), torch.ones(8), torch.ones(n, 8), torch.ones(n, 8)]
    x, weight, bias, scale, shift = (t.requires_grad_() for t in leaves)
    with use_backend(backend):
        y = group_norm_silu(x, 4, weight, bias, scale=scale, shift=shift)
        y.sum().backward()
    assert y.shape == shape
    for leaf in (x, weight, bias, scale, shift):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()
