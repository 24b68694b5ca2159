"""Counter-based noise: any element of any sample of any step, computed from its number alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.errors import FastdiffError
from fastdiff.ops._op import FusedOp
from fastdiff.ops.philox import reference
from fastdiff.ops.philox.reference import BitsArguments, NormalArguments
from fastdiff.scalars import whole

_WORDS = 2**32
MAX_SEED = 1 << 32
NORMAL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def sample_seeds(n: int, seed: int = 0, first: int = 0) -> Tensor:
    """Philox keys [n] int64 of samples first, ..., first + n - 1 of run ``seed``: (seed << 32) | number.

    Raises:
        FastdiffError: a seed outside 0 ... 2^32 - 1.
    """
    seed = whole(seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
        raise FastdiffError(f"seed must be a whole number from 0 to {MAX_SEED - 1}, got {seed!r}")
    high = seed - MAX_SEED if seed >= MAX_SEED // 2 else seed  # the key's 64 bits, read as a signed number
    return (high << 32) + torch.arange(first, first + n, dtype=torch.int64)


def normal(
    seeds: Tensor,
    shape: Sequence[int],
    *,
    step: int = 0,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Standard normal noise that depends on nothing but (seed, stream, step, element).

    Philox4x32-10 turns a 64-bit key and a 128-bit counter into four 32-bit words r. Here

        key      the sample's seed: low word, high word
        counter  (block's low word, step, stream, block's high word), block = element // 4
        word j   belongs to element 4 block + j, elements numbered in contiguous (C, *) order

    .. math::
        u(r) = 2^{-32} r + 2^{-33}, \qquad
        z_{2i} + \mathrm{i} z_{2i+1} = \sqrt{-2 \ln u(r_{2i})}\; e^{2 \pi \mathrm{i} u(r_{2i+1})}

    Args:
        seeds: [N] int64, one for each sample; all 64 bits count.
        shape: shape of one sample.
        step, stream: 0 <= step, stream < 2^32. The sampling loop uses the number of the step and stream 0.
        dtype: of the result; the numbers are the same up to rounding.

    Returns:
        [N, *shape] on the device of the seeds, contiguous.

    Raises:
        FastdiffError: seeds, shape, step, stream or dtype out of the above.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
    """
    if not (0 <= step < _WORDS and 0 <= stream < _WORDS):  # PyTorch takes no larger integers to the check
        _check_words("normal", step, stream)
    return normal_op(seeds, shape, step, stream, dtype)


def random_bits(seeds: Tensor, count: int, *, step: int = 0, stream: int = 0, first_block: int = 0) -> Tensor:
    """The integers below :func:`normal`: words 4 first_block, ..., 4 first_block + count - 1 of each sample.

    Args:
        seeds, step, stream: as in :func:`normal`.
        count: number of words per sample, at least 0.
        first_block: block to begin with, its 64 bits given as a signed integer.

    Returns:
        [N, count] int64, each in [0, 2^32).

    Raises:
        FastdiffError: an argument out of range.
    """
    _check_words("random_bits", step, stream)
    if not -(2**63) <= first_block < 2**63:
        raise FastdiffError(f"random_bits: first_block must fit in 64 bits, got {first_block}")
    return bits_op(seeds, count, step, stream, first_block)


def _check_normal(given: NormalArguments) -> None:
    seeds, shape, step, stream, dtype = given
    check_seeds("normal", seeds)
    _check_words("normal", step, stream)
    if any(size < 0 for size in shape):
        raise FastdiffError(f"normal: shape must hold no negative size, got {list(shape)}")
    if dtype not in NORMAL_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in NORMAL_DTYPES)
        raise FastdiffError(f"normal: dtype must be one of {names}, got {dtype}")


def _check_bits(given: BitsArguments) -> None:
    check_seeds("random_bits", given.seeds)
    _check_words("random_bits", given.step, given.stream)
    if given.count < 0:
        raise FastdiffError(f"random_bits: count must be at least 0, got {given.count}")


def _check_words(op: str, step: int, stream: int) -> None:
    check_word(op, "step", step)
    check_word(op, "stream", stream)


def check_seeds(op: str, seeds: Tensor) -> None:
    """Raise unless seeds is [N] int64."""
    if seeds.dim() != 1 or seeds.dtype != torch.int64:
        raise FastdiffError(f"{op}: seeds must be int64 [N], got {seeds.dtype} {list(seeds.shape)}")


def check_word(op: str, name: str, value: int) -> None:
    """Raise unless value fits into one word of the counter."""
    if not 0 <= value < _WORDS:
        raise FastdiffError(f"{op}: {name} must be in [0, 2^32), got {value}")


def _fake_normal(given: NormalArguments) -> Tensor:
    return given.seeds.new_empty((given.seeds.shape[0], *given.shape), dtype=given.dtype)


def _fake_bits(given: BitsArguments) -> Tensor:
    return given.seeds.new_empty((given.seeds.shape[0], given.count))


normal_op = FusedOp(
    "philox_normal",
    NormalArguments,
    "Tensor",
    reference=lambda given: reference.normal(*given),
    fake=_fake_normal,
    check=_check_normal,
)

bits_op = FusedOp(
    "philox_bits",
    BitsArguments,
    "Tensor",
    reference=lambda given: reference.random_bits(*given),
    fake=_fake_bits,
    check=_check_bits,
)
