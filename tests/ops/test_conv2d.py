"""conv2d: what the cases cannot say. Layout, neighbours in a block, packing, threads, scratch memory, NaN, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv2d_inputs import filters, image, normal
from torch import Tensor

from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import channel_moments, conv2d, norm_coefficients, pack_conv2d, unpack_conv2d
from fastdiff.ops.conv2d import ALGORITHMS
from fastdiff.ops.conv2d.reference import Arguments

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
TILES = {"f2x2": (2, 2), "f2x4": (2, 4), "f4x4": (4, 4)}  # outputs of a Winograd tile: height, width
# The direct product is one of bfloat16 numbers; the others are tested in float32 here.
OF_DTYPE = {algorithm: torch.bfloat16 if algorithm == "direct" else torch.float32 for algorithm in ALGORITHMS}


# Layout


@pytest.mark.parametrize("c", [1, 3, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
@pytest.mark.parametrize("upsample", [False, True], ids=["", "upsample"])
def test_layout_follows_x(c: int, layout: torch.memory_format, upsample: bool) -> None:
    x = normal(2, c, 4, 6)
    x = torch.empty(x.shape, memory_format=layout).copy_(x)
    y = conv2d(x, filters(16, c, 3, 3), upsample=upsample)
    assert isinstance(y, Tensor) and y.is_contiguous(memory_format=layout)
    with torch.device("meta"):
        given = Arguments(torch.empty_like(x, device="meta"), torch.empty(16, c, 3, 3), upsample=upsample)
        fake = torch.ops.fastdiff.conv2d(*given)[0]
    assert (fake.shape, fake.stride()) == (y.shape, y.stride())


# A residual block's worth: moments of one convolution go into the norm of the next


def _block(p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Two layers of norm, SiLU, convolution; the second with AdaGN and a residual."""
    moments = channel_moments(p["x"])
    affine = norm_coefficients(moments, 8, p["gamma"], p["beta"])
    h: Any = conv2d(p["x"], p["first"], p["bias"], affine=affine, silu=True, moments=True)
    h, moments = h
    affine = norm_coefficients(moments, 8, p["gamma"], p["beta"], scale=p["scale"], shift=p["shift"])
    y: Any = conv2d(h, p["second"], affine=affine, silu=True, residual=p["x"], moments=True)
    return y


def _plain_block(p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    h = F.silu(F.group_norm(p["x"].contiguous(), 8, p["gamma"], p["beta"]))
    h = F.conv2d(h, p["first"], p["bias"], padding=1)
    h = F.group_norm(h, 8, p["gamma"], p["beta"])
    h = F.silu(h * (1 + p["scale"][..., None, None]) + p["shift"][..., None, None])
    y = F.conv2d(h, p["second"], padding=1) + p["x"]
    var, mean = torch.var_mean(y if y.dtype == torch.float64 else y.float(), dim=(2, 3), correction=0)
    return y, torch.stack([mean, var], dim=2)


def _parameters(dtype: torch.dtype, h: int = 7, w: int = 10) -> dict[str, Tensor]:
    return {
        "x": image(3, 32, h, w, dtype=dtype),
        "gamma": 1 + 0.2 * normal(32, seed=2, dtype=dtype),
        "beta": 0.2 * normal(32, seed=3, dtype=dtype),
        "first": filters(32, 32, 3, 3, seed=4, dtype=dtype),
        "bias": normal(32, seed=5, dtype=dtype),
        "scale": 0.3 * normal(3, 32, seed=6, dtype=dtype),
        "shift": 0.3 * normal(3, 32, seed=7, dtype=dtype),
        "second": filters(32, 32, 3, 3, seed=8, dtype=dtype),
    }


def _with_gradients(function: Any, p: dict[str, Tensor]) -> list[Tensor]:
    """Outputs, then gradients of a weighting of both outputs with respect to every parameter."""
    p = {k: v.detach().requires_grad_() for k, v in p.items()}
    y, moments = function(p)
    weightings = [normal(*y.shape, seed=9).to(y), normal(*moments.shape, seed=10).to(moments)]
    gradients = torch.autograd.grad([y, moments], list(p.values()), weightings)
    return [y.detach(), moments.detach(), *gradients]


def _assert_as_good(got: list[Tensor], eager: list[Tensor], truth: list[Tensor], floor: float) -> None:
    for i, (g, e, t) in enumerate(zip(got, eager, truth, strict=True)):
        error, bound = ((r.double() - t).abs().max().item() for r in (g, e))
        assert error <= 2 * bound + floor * max(1.0, t.abs().max().item()), f"result {i}"


def test_block_is_that_of_separate_layers_in_float64() -> None:
    p = _parameters(torch.float64)
    with use_backend("reference"):
        got = _with_gradients(_block, p)
    for g, t in zip(got, _with_gradients(_plain_block, p), strict=True):
        torch.testing.assert_close(g, t, rtol=1e-10, atol=1e-10)


@EACH_DTYPE
def test_block_is_as_close_as_separate_layers(dtype: torch.dtype) -> None:
    p = _parameters(dtype)
    with use_backend("cpu"):
        got = list(_block(p))
    truth = list(_plain_block({k: v.double() for k, v in p.items()}))
    floor = 8 * torch.finfo(dtype).eps if dtype == torch.float32 else torch.finfo(dtype).eps
    _assert_as_good(got, list(_plain_block(p)), truth, floor)


def test_gradients_of_a_block_are_as_close_as_those_of_separate_layers() -> None:
    p = _parameters(torch.float32)
    with use_backend("cpu"):
        got = _with_gradients(_block, p)
    truth = _with_gradients(_plain_block, {k: v.double() for k, v in p.items()})
    _assert_as_good(got, _with_gradients(_plain_block, p), truth, 8 * torch.finfo(torch.float32).eps)


@EACH_DTYPE
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("c", "more"), [(16, 16), (32, 24), (48, 5)])
def test_more_is_concatenation_to_the_bit(c: int, more: int, k: int, dtype: torch.dtype) -> None:
    x, second = image(2, c, 6, 9, dtype=dtype), image(2, more, 6, 9, seed=3, dtype=dtype)
    weight = filters(40, c + more, k, k, dtype=dtype)
    affine = normal(2, 3, c + more, seed=4)
    joined = torch.cat([x, second], dim=1).contiguous(memory_format=torch.channels_last)
    with use_backend("cpu"):
        apart = conv2d(x, weight, more=second, affine=affine, silu=True)
        together = conv2d(joined, weight, affine=affine, silu=True)
    assert torch.equal(apart, together)  # pyright: ignore[reportArgumentType]


# Packing


def _strided(weight: Tensor, strides: str) -> Tensor:
    if strides == "transposed":
        return weight.transpose(0, 1).contiguous().transpose(0, 1)
    if strides == "flipped_taps":
        return weight.transpose(2, 3).contiguous().transpose(2, 3)
    if strides == "every_other":
        return weight.repeat_interleave(2, dim=1)[:, ::2]
    return weight.contiguous(memory_format=torch.channels_last)


@EACH_DTYPE
@pytest.mark.parametrize("strides", ["channels_last", "transposed", "flipped_taps", "every_other"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 3), (3, 19, 3, 3), (37, 16, 3, 3), (33, 7, 1, 1), (64, 32, 1, 1)]
)
def test_unpack_undoes_pack_to_the_bit(
    shape: tuple[int, int, int, int], strides: str, dtype: torch.dtype
) -> None:
    weight = _strided(normal(*shape, dtype=dtype), strides)
    packed = pack_conv2d(weight)
    assert packed is not None and packed.dtype == dtype
    assert torch.equal(unpack_conv2d(packed, weight.shape), weight)


@EACH_DTYPE
@pytest.mark.parametrize("k", [1, 3])
def test_packed_weight_gives_the_same_bits(k: int, dtype: torch.dtype) -> None:
    x, weight = image(2, 19, 5, 6, dtype=dtype), filters(37, 19, k, k, dtype=dtype)
    with use_backend("cpu"):
        plain, packed = conv2d(x, weight), conv2d(x, weight, packed=pack_conv2d(weight))
    assert torch.equal(plain, packed)  # pyright: ignore[reportArgumentType]


def test_packing_casts() -> None:
    weight = normal(8, 4, 3, 3)
    packed = pack_conv2d(weight, torch.bfloat16)
    assert packed is not None
    assert torch.equal(unpack_conv2d(packed, weight.shape), weight.bfloat16())


def test_float64_has_nothing_to_pack() -> None:
    assert pack_conv2d(normal(8, 4, 3, 3).double()) is None


def test_packed_weight_of_another_size_is_not_read() -> None:
    x, weight = image(1, 16, 4, 4), filters(16, 16, 3, 3)
    packed = pack_conv2d(filters(16, 8, 3, 3))
    with use_backend("cpu"), pytest.raises(FastdiffError, match=r"packed .* \[16, 16, 3, 3\]"):
        conv2d(x, weight, packed=packed)
    torch.testing.assert_close(conv2d(x, weight, packed=packed), conv2d(x, weight), rtol=1e-4, atol=1e-4)


# Tiles


def _tile(n: int, h: int, w: int, algorithm: str) -> tuple[int, int]:
    """Height and width of the tile that a call of this size gets."""
    return tuple(torch.ops.fastdiff._conv2d_plan(n, 16, 16, h, w, 3, 1, ALGORITHMS[algorithm])[4:])


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        pytest.param((4, 32, 32), (4, 4), id="large"),
        pytest.param((1, 2, 2), (2, 2), id="one_small_tile"),
        pytest.param((1, 1, 1), (2, 2), id="one_pixel"),
        pytest.param((1, 2, 400), (2, 4), id="two_rows"),
        pytest.param((64, 4, 4), (4, 4), id="many_images_of_one_tile"),
    ],
)
def test_tile_of(shape: tuple[int, int, int], tile: tuple[int, int]) -> None:
    assert _tile(*shape, "auto") == tile


@pytest.mark.parametrize("name", TILES)
def test_tile_by_name(name: str) -> None:
    assert _tile(4, 32, 32, name) == TILES[name]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", [(2, 5, 3, 7, 6), (1, 64, 40, 9, 13)], ids=str)
def test_every_algorithm(shape: tuple[int, ...], algorithm: str) -> None:
    (n, c, out, h, w), dtype = shape, OF_DTYPE[algorithm]
    x, weight = image(n, c, h, w, dtype=dtype), filters(out, c, 3, 3, dtype=dtype)
    truth, eager = F.conv2d(x.double(), weight.double(), padding=1), F.conv2d(x, weight, padding=1)
    with use_backend("cpu"):
        got: Any = conv2d(x, weight, algorithm=algorithm)
    _assert_as_good([got], [eager], [truth], 8 * torch.finfo(torch.float32).eps)


# Threads and scratch memory

PARTITIONS = {
    "few_tiles": ((1, 64, 128), 8),
    "many_tiles": ((4, 32, 32), 32),
    "one_panel": ((2, 64, 16), 24),
    "one_tile": ((1, 256, 256), 2),
    "rows_that_do_not_divide": ((3, 48, 40), 19),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("shape", "size"), PARTITIONS.values(), ids=PARTITIONS.keys())
def test_any_number_of_threads_gives_the_same_bits(
    shape: tuple[int, int, int], size: int, algorithm: str
) -> None:
    (n, c, out), dtype = shape, OF_DTYPE[algorithm]
    x, residual = (image(n, channels, size, size, seed=i, dtype=dtype) for i, channels in ((0, c), (2, out)))
    weight = filters(out, c, 3, 3)
    affine = normal(n, 3, c, seed=3)
    results: list[Any] = []
    for threads in (1, 2, 3, 8, 64):
        torch.set_num_threads(threads)
        with use_backend("cpu"):
            results.append(
                conv2d(
                    *(x, weight),
                    affine=affine,
                    silu=True,
                    residual=residual,
                    moments=True,
                    algorithm=algorithm,
                )
            )
    for y, moments in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(moments, results[0][1])


def test_a_small_call_after_a_large_one_sees_nothing_of_it() -> None:
    weight = filters(5, 19, 3, 3)
    for algorithm in (*TILES, "direct"):
        dtype = OF_DTYPE[algorithm]
        small = image(1, 19, 3, 3, dtype=dtype)
        with use_backend("cpu"):
            before: Any = conv2d(small, weight, moments=True, algorithm=algorithm)
            conv2d(
                image(4, 128, 32, 32, dtype=dtype).fill_(float("nan")),
                filters(64, 128, 3, 3),
                moments=True,
                algorithm=algorithm,
            )
            after: Any = conv2d(small, weight, moments=True, algorithm=algorithm)
        assert before[0].isfinite().all() and before[1].isfinite().all()
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


# NaN and infinity


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("silu", [False, True], ids=["", "silu"])
@pytest.mark.parametrize(
    ("backend", "algorithm"), [("reference", "auto"), ("cpu", "auto"), ("cpu", "direct")], ids=str
)
def test_not_finite_comes_through(backend: str, algorithm: str, silu: bool, bad: float) -> None:
    """To every output that it touches; in a Winograd tile, to its neighbours at most, and to no other image."""
    x = image(2, 16, 12, 12, dtype=OF_DTYPE[algorithm])
    x[0, 3, 5, 5] = bad
    with use_backend(backend):
        y: Any = conv2d(x, filters(8, 16, 3, 3), silu=silu, algorithm=algorithm)
    assert not y[0, :, 4:7, 4:7].isfinite().any()
    assert y[1].isfinite().all()
    assert y[0, :, 0].isfinite().all() and y[0, :, :, 0].isfinite().all()


# Errors


def _arguments(**changed: Any) -> dict[str, Any]:
    return {"x": image(2, 16, 4, 6), "weight": filters(8, 16, 3, 3), **changed}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        pytest.param({"x": normal(16, 4, 6)}, r"\[N, C, H, W\].*\[16, 4, 6\]", id="rank"),
        pytest.param({"x": torch.zeros(2, 16, 4, 6, dtype=torch.int64)}, "int64", id="integers"),
        pytest.param({"weight": filters(8, 16, 5, 5)}, r"\[Cout, Cin, 3, 3\].*\[8, 16, 5, 5\]", id="taps"),
        pytest.param({"weight": filters(8, 16, 3)}, r"\[8, 16, 3\]", id="weight_rank"),
        pytest.param({"weight": filters(8, 12, 3, 3)}, "12 channels.* has 16", id="channels"),
        pytest.param({"more": image(2, 8, 4, 5)}, r"\[2, 16, 4, 6\].*\[2, 8, 4, 5\]", id="more_size"),
        pytest.param({"more": image(1, 8, 4, 6)}, r"\[2, 16, 4, 6\].*\[1, 8, 4, 6\]", id="more_batch"),
        pytest.param({"more": image(2, 8, 4, 6)}, "16 channels.* has 24", id="more_channels"),
        pytest.param({"bias": normal(9)}, r"bias must have shape \[8\], got \[9\]", id="bias"),
        pytest.param({"image_bias": normal(8)}, r"image_bias .*\[2, 8\], got \[8\]", id="image_bias"),
        pytest.param({"affine": normal(2, 2, 16)}, r"affine .*\[2, 3, 16\], got \[2, 2, 16\]", id="affine"),
        pytest.param(
            {"residual": image(2, 16, 4, 6)}, r"\[2, 8, 4, 6\], got \[2, 16, 4, 6\]", id="residual_channels"
        ),
        pytest.param(
            {"residual": image(2, 8, 2, 3)}, r"\[2, 8, 4, 6\], got \[2, 8, 2, 3\]", id="residual_size"
        ),
        pytest.param(
            {"residual": image(2, 8, 4, 6), "upsample": True},
            r"\[2, 8, 8, 12\], got \[2, 8, 4, 6\]",
            id="residual_upsampled",
        ),
        pytest.param({"bias": normal(8).half()}, "bias is torch.float16.* x is torch.float32", id="dtype"),
        pytest.param(
            {"bias": torch.empty(8, device="meta")}, "bias is .* on meta, x is .* on cpu", id="device"
        ),
        pytest.param({"algorithm": "fft"}, "'fft'; known: auto, f2x2, f2x4, f4x4, direct", id="algorithm"),
    ],
)
def test_mistakes_are_explained(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(FastdiffError, match=says):
        conv2d(**_arguments(**changed))
    with use_backend("eager"), pytest.raises(FastdiffError, match=says):
        conv2d(**_arguments(**changed))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        pytest.param(
            {"x": normal(2, 16, 4, 6)}, r"\[2, 16, 4, 6\].*\[384, 24, 6, 1\].*not channels_last", id="planes"
        ),
        pytest.param({"x": image(2, 16, 4, 6).double()}, "float64", id="float64"),
        pytest.param({"x": image(2, 12, 4, 6), "more": image(2, 4, 4, 6)}, "multiple of 16", id="more"),
        pytest.param({"x": image(2, 16, 0, 6)}, "no pixels", id="no_pixels"),
        pytest.param(
            {
                "x": image(2, 16, 4, 6).half(),
                "weight": filters(8, 16, 3, 3).half(),
                "residual": image(2, 8, 4, 6),
            },
            "residual is torch.float32, x is torch.float16",
            id="residual_dtype",
        ),
    ],
)
def test_cpu_backend_says_why_not(changed: dict[str, Any], says: str) -> None:
    with use_backend("cpu"), pytest.raises(FastdiffError, match=says):
        conv2d(**_arguments(**changed))
