"""Seeded damage, and how much of it: every round is a number, so that what fails can be made again by itself.

``FASTDIFF_FUZZ=100 pytest tests/fuzz`` makes a hundred times as many rounds as ``make test`` does, each another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from fastdiff.errors import FastdiffError

Damage = Callable[[bytearray, np.random.Generator], None]


def rounds(count: int) -> range:
    """Numbers of rounds; ``count`` of them, or as many times that as the environment says."""
    return range(int(count * float(os.environ.get("FASTDIFF_FUZZ", "1"))))


def _span(data: bytearray, rng: np.random.Generator) -> slice:
    start = int(rng.integers(len(data)))
    return slice(start, start + int(2 ** rng.uniform(0, np.log2(len(data)))))


def flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def zero(data: bytearray, rng: np.random.Generator) -> None:
    span = _span(data, rng)
    data[span] = bytes(len(data[span]))


def scramble(data: bytearray, rng: np.random.Generator) -> None:
    span = _span(data, rng)
    data[span] = rng.bytes(len(data[span]))


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def remove(data: bytearray, rng: np.random.Generator) -> None:
    """An odd number of bytes, as whole blocks of an archive may be a member, whose absence nothing tells."""
    start = int(rng.integers(len(data)))
    del data[start : start + 2 * int(rng.integers(1000)) + 1]


def insert(data: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(data)))
    data[start:start] = rng.bytes(2 * int(rng.integers(1000)) + 1)


def big_number(data: bytearray, rng: np.random.Generator) -> None:
    """A size or count that lies."""
    start = int(rng.integers(len(data)))
    number = [b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"99999999999", b"\x80" + bytes(7)][int(rng.integers(4))]
    data[start : start + len(number)] = number


DAMAGES: tuple[Damage, ...] = (flip, zero, scramble, cut, remove, insert, big_number)


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """``whole`` with one kind of damage, or two."""
    data = bytearray(whole)
    for kind in rng.integers(len(DAMAGES), size=int(rng.integers(1, 3))):
        if data:
            DAMAGES[kind](data, rng)
    return bytes(data)


@contextmanager
def one_sentence() -> Iterator[list[FastdiffError]]:
    """Around a call that may refuse what it is given, and then in one line. What it said is in the list.

    Any other exception is a failure.
    """
    said: list[FastdiffError] = []
    try:
        yield said
    except FastdiffError as error:
        said.append(error)
        assert "\n" not in str(error) and len(str(error)) < 5000, str(error)[:10000]


def numbered(number: int) -> np.random.Generator:
    """Random generator of one round."""
    return np.random.default_rng([2015, number])
