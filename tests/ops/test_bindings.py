"""fastdiff._C: Philox's published answers, and what the processor can do."""

from __future__ import annotations

import pytest
import torch

from fastdiff import _C  # type: ignore[attr-defined]
from fastdiff.ops import random_bits

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, answer.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    assert list(_C.philox(counter, key)) == answer


def test_random_bits_are_philoxs() -> None:
    """Key: the seed's low and high word. Counter: block's low word, step, stream, block's high word."""
    seed, step, stream, block = 0x0123456789ABCDEF, 7, 3, (5 << 32) + 11
    words = random_bits(torch.tensor([seed]), 4, step=step, stream=stream, first_block=block)
    assert words.tolist() == [list(_C.philox([11, step, stream, 5], [seed & 0xFFFFFFFF, seed >> 32]))]


def test_the_rate_is_one_that_processors_have() -> None:
    rate = _C.bfloat16_rate()
    assert rate == 0 if "avx512bf16" not in _C.instruction_sets() else 0.3 < rate < 5
    assert {"compiler", "date", "python"} <= _C.build_info().keys()
