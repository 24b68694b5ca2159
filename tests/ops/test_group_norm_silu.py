"""group_norm_silu: mistakes, layouts, NaN, precision, second derivatives."""

from __future__ import annotations

import logging
from typing import Any

import backends
import pytest
import torch
from torch import Tensor

import fastdiff.backend
from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import group_norm_silu
from fastdiff.ops.group_norm_silu import eager, forward_op
from fastdiff.ops.group_norm_silu.reference import Arguments

each_backend = backends.each("group_norm_silu")


def _normal(*shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), **options).to(dtype)


X = _normal(2, 64, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"x": X.long()}, r"floating-point tensor \[N, C, \*\], got torch.int64 \[2, 64, 4, 4\]"),
        ({"x": X[0, 0, 0]}, r"floating-point tensor \[N, C, \*\], got torch.float32 \[4\]"),
        ({"num_groups": 0}, "num_groups=0 does not divide the 64 channels"),
        ({"num_groups": 24}, "num_groups=24 does not divide the 64 channels"),
        ({"weight": torch.ones(32)}, r"weight must have shape \[64\], got \[32\]"),
        ({"bias": torch.ones(64, 1)[None]}, r"bias must have shape \[64\], got \[1, 64, 1\]"),
        ({"scale": torch.ones(64)}, r"scale must have shape \[2, 64\], got \[64\]"),
        ({"shift": torch.ones(2, 64, 2, 1)}, r"shift must have shape \[2, 64\], got \[2, 64, 2, 1\]"),
        ({"weight": torch.ones(64, device="meta")}, "weight is on meta, x is on cpu"),
        ({"bias": torch.ones(64, dtype=torch.float16)}, "bias must be float32 or torch.float32 like x"),
    ],
)
def test_mistakes_are_explained(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(FastdiffError, match=says):
        group_norm_silu(**{"x": X, "num_groups": 32, **arguments})


@each_backend
@pytest.mark.parametrize("shape", [(2, 64, 4, 4), (3, 32, 5, 7), (1, 64, 1, 9), (4, 64, 1, 1)], ids=str)
def test_layout_is_kept(backend: Backend, shape: tuple[int, ...]) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = _normal(*shape).to(memory_format=layout)
        with use_backend(backend):
            assert group_norm_silu(x, 32).stride() == x.stride()


def test_scale_and_shift_may_have_trailing_dimensions() -> None:
    scale, shift = _normal(2, 64), _normal(64, 2).T
    long = group_norm_silu(X, 32, scale=scale[..., None, None], shift=shift[..., None, None])
    torch.testing.assert_close(long, group_norm_silu(X, 32, scale=scale, shift=shift), rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each_backend
def test_nan_and_infinity_stay_in_their_group(backend: Backend, bad: float, layout: Any) -> None:
    x = X.clone(memory_format=layout)
    x[1, 5, 2, 2] = bad  # group 2: channels 4 and 5
    with use_backend(backend):
        y = group_norm_silu(x.to(memory_format=layout), 32)
    assert y[1, 4:6].isnan().all()
    y[1, 4:6] = 0
    assert y.isfinite().all()


@each_backend
def test_gradient_in_another_layout_than_x(backend: Backend) -> None:
    x, grad = _normal(2, 64, 6, 6).requires_grad_(), _normal(2, 64, 6, 6)
    with use_backend(backend):
        y = group_norm_silu(x, 32)
        (plain,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        (other,) = torch.autograd.grad(y, x, grad.to(memory_format=torch.channels_last), retain_graph=True)
        (expanded,) = torch.autograd.grad(y.sum(), x)  # a gradient whose strides are all 0
    torch.testing.assert_close(other, plain, rtol=0, atol=0)
    ones = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(eager.group_norm_silu(Arguments(ones, 32)).sum(), ones)
    torch.testing.assert_close(expanded, expected, rtol=1e-4, atol=1e-5)


@each_backend
def test_no_images_have_gradients(backend: Backend) -> None:
    x, w = torch.empty(0, 64, 4, 4, requires_grad=True), torch.ones(64, requires_grad=True)
    with use_backend(backend):
        dx, dw = torch.autograd.grad(group_norm_silu(x, 32, w).sum(), (x, w))
    assert dx.shape == x.shape
    assert (dw == 0).all()


@each_backend
def test_no_pixels_have_statistics(backend: Backend) -> None:
    with use_backend(backend):
        _, mean, rstd = forward_op(torch.empty(2, 64, 0, 4), 32, None, None, None, None, 1e-5, True)
    assert (mean == 0).all() and (rstd == 0).all()


def test_only_the_gradients_asked_for() -> None:
    x, w = X.clone(), torch.ones(64, requires_grad=True)
    group_norm_silu(x, 32, w).sum().backward()
    assert w.grad is not None and x.grad is None


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "f16", "f32"])
def test_a_group_of_one_value_has_no_gradient(backend: Backend, dtype: torch.dtype) -> None:
    """It is its own mean, whatever it is."""
    x = torch.randn(3, 32, 1, 1, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    weight = torch.linspace(0.5, 2, 32).to(dtype)
    with use_backend(backend):
        (dx,) = torch.autograd.grad(group_norm_silu(x, 32, weight, weight).float().square().sum(), x)
    assert not dx.any()


def test_float64_and_odd_strides_fall_back_and_say_so_once(caplog, monkeypatch) -> None:
    monkeypatch.setattr(fastdiff.backend, "_logged", set())
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        y = group_norm_silu(X.double(), 32)
        group_norm_silu(X.double(), 32)
        group_norm_silu(_normal(2, 128, 4, 4)[:, ::2], 32)
    assert y.dtype == torch.float64
    assert len(caplog.records) == 2
    assert (
        "x is torch.float64, not float32" in caplog.text
        and "neither contiguous nor channels_last" in caplog.text
    )


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_statistics_of_a_large_mean(offset: float) -> None:
    """A mean far beyond the deviation costs digits of the input, not of the variance."""
    x = _normal(1, 32, 64, 64) + offset
    with use_backend("cpu"):
        for layout in (torch.contiguous_format, torch.channels_last):
            y = group_norm_silu(x.to(memory_format=layout), 32, silu=False).double()
            exact = eager.group_norm_silu(Arguments(x.double(), 32, silu=False))
            assert (y - exact).abs().max() < 4e-6 * (1 + 1e-4 * offset)
