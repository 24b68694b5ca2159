"""group_norm_silu's CUDA kernels where the cases of every op do not reach: each path against the others, order, reach.

Runs on a GPU, or without one on the emulated library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.ops import group_norm_silu
from fastdiff.ops.group_norm_silu import backward_op, eager, forward_op
from fastdiff.ops.group_norm_silu.reference import Arguments

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# csrc/common/group_norm_silu.h: enum Path
AUTOMATIC = 0
PATHS = {"one_block": 1, "cluster": 2, "partials": 3}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _on_cuda_kernels(cuda_kernels: Backend) -> Iterator[None]:
    with use_backend(cuda_kernels):
        yield


@contextlib.contextmanager
def _path(path: int) -> Iterator[None]:
    """Tiles come together in this way in the block's calls."""
    before = torch.ops.fastdiff._group_norm_silu_path(path)
    try:
        yield
    finally:
        torch.ops.fastdiff._group_norm_silu_path(before)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _run(x: Tensor, groups: int, path: int, *, adaptive: bool = False) -> list[Tensor]:
    """y, mean, rstd, then dx, dweight, dbias, dscale, dshift."""
    n, c = x.shape[:2]
    grad = torch.empty_like(x).copy_(_normal(*x.shape, seed=1))
    affine: list[Tensor | None] = [1 + 0.2 * _normal(c, seed=2), 0.2 * _normal(c, seed=3)]
    affine += [0.3 * _normal(n, c, seed=4), 0.3 * _normal(n, c, seed=5)] if adaptive else [None, None]
    with _path(path):
        y, mean, rstd = forward_op(x, groups, *affine, 1e-5, True)
        return [y, mean, rstd, *backward_op(grad, x, mean, rstd, groups, *affine, True)]


def _runs_here(path: int) -> bool:
    return path != PATHS["cluster"] or DEVICE == "cpu" or torch.cuda.get_device_capability()[0] >= 9


# Sizes that one block holds, so that every path is possible; 12x13 leaves a cluster's last block less than the others.
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (1, 24, 12, 13), (1, 96, 4, 10)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_paths_agree(path: str, layout: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not _runs_here(PATHS[path]):
        pytest.skip("no clusters on this device")
    x = (_normal(*shape) + 3).to(dtype).to(memory_format=LAYOUTS[layout])
    got = _run(x, 8, PATHS[path], adaptive=True)
    for g, e in zip(got, _run(x, 8, AUTOMATIC, adaptive=True), strict=True):
        # The same sums in another order; 16-bit results may then round to a neighbour.
        tolerance = 2e-5 if g.dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_the_same_to_the_bit(path: str, layout: str) -> None:
    if not _runs_here(PATHS[path]):
        pytest.skip("no clusters on this device")
    x = _normal(2, 48, 8, 12).to(memory_format=LAYOUTS[layout])
    for first, second in zip(_run(x, 8, PATHS[path]), _run(x, 8, PATHS[path]), strict=True):
        assert torch.equal(first, second)


def test_a_path_that_cannot_be_is_refused() -> None:
    with _path(PATHS["one_block"]), pytest.raises(RuntimeError, match="CUDA refused"):
        group_norm_silu(_normal(1, 2, 512, 512), 1)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 1040, 3, 3), 1),  # a group is wider than a block, in packs
        ((1, 257, 2, 3), 1),  # and cannot be cut
        ((1, 2060, 1, 2), 2),  # packs straddle groups, and no whole number of both fits
        ((3, 600, 2, 4), 1),
        ((1, 8, 40, 40), 4),  # larger than the emulated second-level cache
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_wide_groups_and_parts(layout: str, dtype: torch.dtype, shape: tuple[int, ...], groups: int) -> None:
    x = _normal(*shape).to(dtype).to(memory_format=LAYOUTS[layout])
    _check(x, groups, path=PATHS["partials"])
    _check(x, groups, path=AUTOMATIC)


def _check(x: Tensor, groups: int, path: int) -> None:
    """Against eager in float64."""
    c = x.shape[1]
    y, *_, dx, dweight, dbias, _, _ = _run(x, groups, path)
    leaves: list[Any] = [
        x.double(),
        (1 + 0.2 * _normal(c, seed=2)).double(),
        0.2 * _normal(c, seed=3).double(),
    ]
    leaves = [leaf.contiguous().requires_grad_() for leaf in leaves]
    exact = eager.group_norm_silu(Arguments(leaves[0], groups, leaves[1], leaves[2]))
    grads = torch.autograd.grad(exact, leaves, _normal(*x.shape, seed=1).to(x.dtype).double())
    for got, wanted in zip((y, dx, dweight, dbias), (exact, *grads), strict=True):
        rounding = torch.finfo(got.dtype).eps
        scale = max(1.0, float(wanted.detach().abs().max()))
        assert (got.double() - wanted).abs().max() <= 8 * max(rounding, 1e-7) * scale


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_offsets_beyond_32_bits(path: str, layout: str) -> None:
    """Two images 2^31 elements apart in a tensor that is never touched between them."""
    if not _runs_here(PATHS[path]):
        pytest.skip("no clusters on this device")
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("4 GiB of memory needed")
    distance = 2**31 + 64
    whole = _untouched(distance + 16 * 64)
    strides = (distance, 64, 8, 1) if layout == "contiguous" else (distance, 1, 8 * 16, 16)
    x = whole.as_strided((2, 16, 8, 8), strides)
    x.copy_(_normal(2, 16, 8, 8))
    dense = torch.empty_like(x).copy_(x)
    for far, near in zip(_run(x, 4, PATHS[path]), _run(dense, 4, PATHS[path]), strict=True):
        assert torch.equal(far, near)


def _untouched(elements: int) -> Tensor:
    """float16 memory that is not filled, so that on the CPU it costs nothing where nobody looks."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return torch.empty(elements, dtype=torch.float16, device=DEVICE)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("path", PATHS)
def test_nan_and_infinity_stay_in_their_group(path: str, bad: float, layout: str) -> None:
    if not _runs_here(PATHS[path]):
        pytest.skip("no clusters on this device")
    x = _normal(2, 48, 4, 4)
    x[1, 7, 2, 2] = bad  # group 2: channels 6 to 8
    x = x.to(memory_format=LAYOUTS[layout])
    with _path(PATHS[path]):
        y = group_norm_silu(x, 16)
    assert y[1, 6:9].isnan().all()
    y[1, 6:9] = 0
    assert y.isfinite().all()


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("path", PATHS)
def test_statistics_of_a_large_mean(path: str, offset: float) -> None:
    """A mean far beyond the deviation costs digits of the input, not of the variance."""
    if not _runs_here(PATHS[path]):
        pytest.skip("no clusters on this device")
    size = 20 if path == "one_block" else 47  # several tiles where they can be
    for layout in LAYOUTS.values():
        x = (_normal(1, 16, size, size) + offset).to(memory_format=layout)
        with _path(PATHS[path]):
            _, mean, rstd = forward_op(x, 4, None, None, None, None, 1e-5, False)
        groups = x.double().reshape(1, 4, -1)
        exact = (groups.var(2, correction=0) + 1e-5).rsqrt()
        torch.testing.assert_close(mean.double(), groups.mean(2), rtol=1e-7, atol=0)
        torch.testing.assert_close(rstd.double(), exact, rtol=2e-6, atol=0)


def test_unaligned_images_and_parameters() -> None:
    """Memory that starts anywhere is read element by element, also through parameters of other types and strides."""
    whole = _normal(1 + 2 * 32 * 16).half()
    x = whole[1:].view(2, 32, 4, 4)
    scale, shift = _normal(2, 64).half().chunk(2, dim=1)
    weight = _normal(64)[::2]
    far = group_norm_silu(x, 8, weight, scale=scale, shift=shift.T.contiguous().T)
    near = group_norm_silu(
        x.clone(), 8, weight.contiguous(), scale=scale.contiguous(), shift=shift.contiguous()
    )
    torch.testing.assert_close(far, near, rtol=1e-3, atol=1e-3)


def test_no_images_and_no_pixels() -> None:
    _, mean, rstd = forward_op(
        torch.empty(2, 64, 0, 4, device=DEVICE), 32, None, None, None, None, 1e-5, True
    )
    assert (mean == 0).all() and (rstd == 0).all()
    x = torch.empty(0, 64, 4, 4, device=DEVICE, requires_grad=True)
    w = torch.ones(64, device=DEVICE, requires_grad=True)
    dx, dw = torch.autograd.grad(group_norm_silu(x, 32, w).sum(), (x, w))
    assert dx.shape == x.shape and (dw == 0).all()
