"""The gradient of conv2d's weight: what the cases cannot say. Shapes of every partition, layouts, threads, NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.ops import conv2d
from fastdiff.ops.conv2d import gradient

# N, Cin, Cout, H, W: one block and many, sums that fit and sums by slices, pieces apart, tiles that stick out.
SHAPES = {
    "one_tile": (1, 16, 16, 4, 4),
    "odd": (2, 19, 37, 6, 7),
    "many_tiles": (16, 32, 32, 32, 32),
    "slices_of_one_block": (2, 200, 160, 8, 8),
    "slices_of_many_blocks": (2, 136, 128, 32, 20),
    "wide": (1, 24, 16, 3, 300),
    "one_row": (3, 16, 16, 1, 9),
}


def _inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """dy, x, a weight to look like."""
    n, c, out, h, w = shape
    g = torch.Generator().manual_seed(sum(shape))
    images = [torch.randn(n, k, h, w, generator=g).to(dtype) for k in (out, c)]
    dy, x = (t.contiguous(memory_format=torch.channels_last) for t in images)
    return dy, x, torch.zeros(out, c, 3, 3)


def _run(dy: Tensor, x: Tensor, weight: Tensor, kernel: bool = True, **options: Any) -> tuple[Tensor, Tensor]:
    arguments = {"more": None, "affine": None, "silu": False, "upsample": False, "bias": True, **options}
    with use_backend(Backend.CPU if kernel else Backend.REFERENCE):
        return gradient.weight_op(dy, x, weight, *arguments.values())


def _assert_close(got: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> None:
    for g, t in zip(got, truth, strict=True):
        assert float((g.double() - t).norm()) <= 4e-6 * float(t.norm())


@pytest.mark.parametrize("threads", [1, 2, 7, 40])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_partition(shape: tuple[int, ...], threads: int) -> None:
    dy, x, weight = _inputs(shape)
    torch.set_num_threads(threads)
    got = _run(dy, x, weight)
    again = _run(dy, x, weight)
    assert torch.equal(got[0], again[0]) and torch.equal(got[1], again[1])
    _assert_close(got, _run(dy.double(), x.double(), weight.double(), kernel=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_16_bit_inputs_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    dy, x, weight = _inputs(SHAPES["odd"], dtype)
    got = _run(dy, x, weight)
    assert got[0].dtype == got[1].dtype == torch.float32
    _assert_close(got, _run(dy.double(), x.double(), weight.double(), kernel=False))


def test_activation_upsampling_and_a_second_input_are_folded_in() -> None:
    dy, _, _ = _inputs((2, 48, 40, 8, 12))
    _, x, _ = _inputs((2, 32, 40, 4, 6))
    _, more, _ = _inputs((2, 16, 40, 4, 6))
    weight, affine = torch.zeros(40, 48, 3, 3), torch.rand(2, 3, 48)
    options = {"silu": True, "upsample": True}
    got = _run(dy, x, weight, more=more, affine=affine, **options)
    doubles = {"more": more.double(), "affine": affine.double()}
    _assert_close(got, _run(dy.double(), x.double(), weight.double(), kernel=False, **doubles, **options))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
def test_result_lies_as_the_weight_does(layout: torch.memory_format) -> None:
    dy, x, weight = _inputs(SHAPES["odd"])
    got = _run(dy, x, weight.contiguous(memory_format=layout))[0]
    assert got.is_contiguous(memory_format=layout)
    assert torch.equal(got, _run(dy, x, weight)[0])


def test_no_images_no_gradient() -> None:
    dy, x, weight = _inputs((0, 16, 16, 4, 4))
    assert not _run(dy, x, weight)[0].any() and not _run(dy, x, weight)[1].any()


def test_nan_comes_through() -> None:
    dy, x, weight = _inputs(SHAPES["many_tiles"])
    x[3, 5, 10, 10] = torch.nan
    dweight, dbias = _run(dy, x, weight)
    assert dweight[:, 5].isnan().all() and dbias.isfinite().all()
    assert dweight[:, :5].isfinite().all() and dweight[:, 6:].isfinite().all()


@pytest.mark.parametrize(
    ("shape", "pays"),
    [((4, 32, 32, 16, 16), True), ((1, 32, 32, 4, 4), False), ((4, 3, 32, 16, 16), False)],
    ids=["layer", "few_tiles", "image"],
)
def test_few_pixels_or_channels_are_left_to_pytorch(
    shape: tuple[int, ...], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, x, weight = _inputs(shape)
    seen = []
    run = gradient.weight_op
    monkeypatch.setattr(gradient, "weight_op", lambda *args: (seen.append(1), run(*args))[1])
    y: Any = conv2d(x, weight.requires_grad_())
    y.sum().backward()
    assert bool(seen) == pays


def test_second_derivatives_are_the_references() -> None:
    _, x, weight = _inputs((2, 16, 16, 8, 8))
    found = []
    for kernel in (True, False):
        w = (weight + 0.1 * x[0, 0, :3, :3]).requires_grad_()
        with use_backend(Backend.CPU if kernel else Backend.REFERENCE):
            y: Any = conv2d(x, w)
            (first,) = torch.autograd.grad(y.square().sum(), w, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), w)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)
