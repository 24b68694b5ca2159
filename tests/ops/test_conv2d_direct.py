"""conv2d's direct product of bfloat16 numbers, in whichever form this processor has: instructions of AMX, or loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv2d_inputs import filters, image, normal

from fastdiff.backend import use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import conv2d, pack_conv2d, unpack_conv2d

DIRECT = {
    "blocks_that_stick_out": ((2, 40, 37, 7, 5), {}),
    "several_bands": ((1, 64, 32, 70, 18), {}),
    "many_channels": ((1, 1280, 48, 9, 33), {}),
    "one_row": ((2, 16, 16, 1, 50), {}),
    "one_column": ((3, 16, 20, 50, 1), {}),
    "one_pixel": ((3, 32, 32, 1, 1), {}),
    "side_by_side": ((2, 48, 40, 6, 9), {"more": 24}),
    "upsampled": ((2, 32, 40, 18, 10), {"upsample": True}),
    "whole_tiles": ((3, 64, 40, 8, 6), {}),  # which 1x1 reads in place
    "whole_tiles_side_by_side": ((2, 64, 40, 20, 16), {"more": 32}),
}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("shape", "options"), DIRECT.values(), ids=DIRECT.keys())
def test_direct_products_are_exact_but_for_their_sum(
    shape: tuple[int, ...], options: dict[str, Any], k: int
) -> None:
    """Products of bfloat16 numbers are exact in float32: the moments, which are not rounded, show the sums."""
    n, c, out, h, w = shape
    factor, more = (2 if options.get("upsample") else 1), options.get("more", 0)
    x = image(n, c, h // factor, w // factor, dtype=torch.bfloat16)
    second = image(n, more, h, w, seed=5, dtype=torch.bfloat16) if more else None
    weight, bias = filters(out, c + more, k, k, dtype=torch.bfloat16), normal(out, seed=2)
    embedded, residual = normal(n, out, seed=3), image(n, out, h, w, seed=4, dtype=torch.bfloat16)
    joined = (x if second is None else torch.cat([x, second], dim=1)).double()
    joined = joined.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    truth = F.conv2d(joined, weight.double(), bias.double(), padding=k // 2)
    truth += embedded[..., None, None] + residual
    with use_backend("cpu"):
        y, moments = conv2d(
            *(x, weight, bias),
            more=second,
            upsample=factor == 2,
            image_bias=embedded,
            residual=residual,
            moments=True,
            algorithm="direct",
        )
    assert torch.equal(y, y.to(memory_format=torch.channels_last)) and y.dtype == torch.bfloat16
    error = (y.double() - truth).abs()
    assert (error <= truth.abs() * 2**-8 + 1e-5).all()
    variance, mean = torch.var_mean(truth, dim=(2, 3), correction=0)
    torch.testing.assert_close(moments[..., 0].double(), mean, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(moments[..., 1].double(), variance, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_direct_rounds_what_separate_layers_round(k: int) -> None:
    """The activated input and the weight; the error is at most that of eager bfloat16."""
    x, weight = image(2, 72, 12, 12, dtype=torch.bfloat16), filters(40, 72, k, k)
    affine = normal(2, 3, 72, seed=3)
    center, scale, shift = affine[..., None, None].unbind(1)
    activated = F.silu((x.float() - center) * scale + shift)
    truth = F.conv2d(activated.bfloat16().double(), weight.bfloat16().double(), padding=k // 2)
    exact = F.conv2d(activated.double(), weight.double(), padding=k // 2)
    eager = F.conv2d(activated.bfloat16(), weight.bfloat16(), padding=k // 2)
    with use_backend("cpu"):
        y: Any = conv2d(x, weight, affine=affine, silu=True, algorithm="direct")
    assert (y.double() - truth).norm() <= 2**-8 * truth.norm()
    assert (y.double() - exact).norm() <= 1.05 * (eager.double() - exact).norm()


def test_direct_has_the_same_bits_packed() -> None:
    x, weight = image(2, 40, 5, 6, dtype=torch.bfloat16), filters(37, 40, 3, 3)
    packed = pack_conv2d(weight, torch.bfloat16, algorithm="direct")
    assert packed is not None
    assert torch.equal(unpack_conv2d(packed, weight.shape), weight.bfloat16())
    with use_backend("cpu"):
        plain: Any = conv2d(x, weight, algorithm="direct")
        got: Any = conv2d(x, weight, packed=packed, algorithm="direct")
        assert torch.equal(plain, got)
        with pytest.raises(FastdiffError, match="not a packed weight"):  # in the order of the other algorithm
            conv2d(x, weight, packed=packed, algorithm="f4x4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "f4x4", "direct"])
def test_a_packed_weight_says_what_it_is_for(algorithm: str, dtype: torch.dtype) -> None:
    """A weight of either dtype, packed for any algorithm, is taken as it is where the call names none."""
    x, weight = image(2, 32, 5, 6, dtype=torch.bfloat16), filters(16, 32, 3, 3, dtype=dtype)
    packed = pack_conv2d(weight, algorithm=algorithm)
    with use_backend("cpu"):
        y: Any = conv2d(x, weight, packed=packed)
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    assert (y.double() - truth).norm() <= 2**-7 * truth.norm()


def test_direct_is_for_bfloat16() -> None:
    for dtype in (torch.float32, torch.float16):
        x, weight = image(1, 16, 4, 4, dtype=dtype), filters(16, 16, 3, 3, dtype=dtype)
        with use_backend("cpu"), pytest.raises(FastdiffError, match=f"one of bfloat16 numbers, x is {dtype}"):
            conv2d(x, weight, algorithm="direct")
