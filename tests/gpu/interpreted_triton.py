"""Run by test_triton_interpreter.py in a process of its own, where Triton interprets."""

from __future__ import annotations

import pytest
import torch

from fastdiff.backend import use_backend
from fastdiff.ops import normal, random_bits
from fastdiff.ops._triton import INTERPRETED
from fastdiff.ops.philox import reference

assert INTERPRETED


def test_known_answers_of_philox() -> None:
    """Random123's, for the counter and key made of the digits of pi."""
    seeds = torch.tensor([0x299F31D0 << 32 | 0xA4093822])
    block = 0x03707344 << 32 | 0x243F6A88
    with use_backend("triton"):
        words = random_bits(seeds, 4, step=0x85A308D3, stream=0x13198A2E, first_block=block)
    assert words.tolist() == [[0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]]


def test_normals_are_within_a_few_units_in_the_last_place() -> None:
    seeds = torch.tensor([3, -4])
    with use_backend("triton"):
        got = normal(seeds, (50_001,), step=9).double()
    truth = reference.normal(seeds, (50_001,), step=9, dtype=torch.float64)
    unit = torch.exp2(torch.floor(torch.log2(truth.abs())) - 23)
    assert float(((got - truth).abs() / unit).max()) < 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_results_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    seeds = torch.tensor([5])
    with use_backend("triton"):
        assert torch.equal(normal(seeds, (999,), dtype=dtype), normal(seeds, (999,)).to(dtype))
