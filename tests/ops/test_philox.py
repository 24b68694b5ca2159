"""Philox against the published words, and its normals against the distribution and the independence they promise."""

from __future__ import annotations

import math

import backends
import pytest
import torch

from fastdiff import _C
from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import normal, random_bits
from fastdiff.ops._op import FusedOp
from fastdiff.ops.philox import bits_op, normal_op, reference

# Random123's known answers for philox4x32-10: counter (4 words), key (2 words), result.
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


def _signed(low: int, high: int) -> int:
    value = high << 32 | low
    return value - 2**64 if value >= 2**63 else value


@backends.each("philox_bits")
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_known_answers(backend: Backend, counter: tuple, key: tuple, expected: tuple) -> None:
    seeds = torch.tensor([_signed(*key)])
    block = _signed(counter[0], counter[3])
    with use_backend(backend):
        words = random_bits(seeds, 4, step=counter[1], stream=counter[2], first_block=block)
    assert words.tolist() == [list(expected)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_known_answers_in_cpp(counter: tuple, key: tuple, expected: tuple) -> None:
    """csrc/common/philox.h, which all compiled kernels share, by itself."""
    assert tuple(_C.philox(counter, key)) == expected


@backends.each("philox_bits")
def test_bits_are_the_words_in_cpp(backend: Backend) -> None:
    seeds, step, stream, first = (0x0123456789ABCDEF, -(2**63), -1), 2**32 - 1, 77, 2**32 - 3
    with use_backend(backend):
        bits = random_bits(torch.tensor(seeds), 26, step=step, stream=stream, first_block=first)
    for seed, row in zip(seeds, bits.tolist(), strict=True):
        words = []
        for block in range(first, first + 7):  # past 2^32
            counter = (block & 0xFFFFFFFF, step, stream, block >> 32)
            words += _C.philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
        assert row == words[:26]


@backends.each("philox_bits")
def test_bits_begin_at_any_block(backend: Backend) -> None:
    seeds = torch.tensor([7, -7])
    with use_backend(backend):
        whole = random_bits(seeds, 400, step=1)
        assert torch.equal(random_bits(seeds, 100, step=1, first_block=75), whole[:, 300:])


def test_box_muller_by_hand() -> None:
    """The first block of key 0, counter 0, whose words are published."""
    words = KNOWN_ANSWERS["zeros"][2]
    u = [(r + 0.5) / 2**32 for r in words]
    expected = []
    for i in (0, 2):
        radius = math.sqrt(-2 * math.log(u[i]))
        expected += [radius * math.cos(2 * math.pi * u[i + 1]), radius * math.sin(2 * math.pi * u[i + 1])]
    z = normal(torch.tensor([0]), (4,))
    torch.testing.assert_close(z[0].double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


@backends.each_kernel("philox_normal")
def test_float32_normals_are_within_a_few_units_in_the_last_place(backend: Backend) -> None:
    seeds, n = torch.tensor([3, -4]), 1_000_000 if backend is Backend.CPU else 20_001
    with use_backend(backend):
        got = normal(seeds, (n,), step=9).double()
    truth = reference.normal(seeds, (n,), step=9, dtype=torch.float64)
    unit = torch.exp2(torch.floor(torch.log2(truth.abs())) - 23)
    assert float(((got - truth).abs() / unit).max()) < 6
    if backend is Backend.CPU:
        assert float(truth.abs().max()) > 4.8  # tails were among them
        assert float(truth.abs().min()) < 1e-5  # and the neighbourhood of 0


@backends.each_kernel("philox_normal")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_results_are_rounded_to_nearest(backend: Backend, dtype: torch.dtype) -> None:
    seeds = torch.tensor([5])
    with use_backend(backend):
        assert torch.equal(normal(seeds, (999,), dtype=dtype), normal(seeds, (999,)).to(dtype))


@pytest.fixture(scope="module")
def sample() -> torch.Tensor:
    return normal(torch.tensor([11]), (1 << 22,)).double()[0]


def test_moments(sample: torch.Tensor) -> None:
    """Within five standard errors of those of the standard normal."""
    n = len(sample)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((sample**power).mean()) - moment) < 5 * math.sqrt(variance / n)


def test_tails(sample: torch.Tensor) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for z in (3.0, 4.0, 4.5):
        expected = 2 * len(sample) * stats.norm.sf(z)
        assert abs(int((sample.abs() > z).sum()) - expected) < 5 * math.sqrt(expected)


def test_kolmogorov_smirnov(sample: torch.Tensor) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for part in sample.unflatten(0, (-1, 4)).T:  # each word of a block by itself
        assert stats.kstest(part[:200_000].numpy(), "norm").pvalue > 1e-3


def test_streams_steps_samples_and_neighbours_are_uncorrelated() -> None:
    n = 1 << 20
    seeds = torch.tensor([0, 1, 1 << 32, -1])
    draws = [normal(seeds, (n,), step=s, stream=t) for s, t in ((0, 0), (1, 0), (0, 1), (2**32 - 1, 0))]
    z = torch.cat(draws).double()
    z = torch.cat((z, z[:1].roll(1, 1), z[:1].roll(2, 1), z[:1].roll(4, 1)))
    correlation = z @ z.T / n
    off_diagonal = correlation - torch.diag(correlation.diag())
    assert float(off_diagonal.abs().max()) < 5.5 / math.sqrt(n)


@backends.each("philox_normal")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_sample_is_the_same_in_any_batch(backend: Backend, dtype: torch.dtype) -> None:
    seeds = torch.arange(7) - 3
    with use_backend(backend):
        batch = normal(seeds, (3, 7, 5), step=5, dtype=dtype)
        for i in (0, 3, 6):
            assert torch.equal(normal(seeds[i : i + 1], (3, 7, 5), step=5, dtype=dtype)[0], batch[i])
        assert torch.equal(normal(seeds[::2], (3, 7, 5), step=5, dtype=dtype), batch[::2])


def test_a_larger_image_begins_with_the_smaller_one() -> None:
    seeds = torch.tensor([5])
    assert torch.equal(normal(seeds, (10_001,))[:, :77], normal(seeds, (77,)))


def test_threads_draw_the_same() -> None:
    draws = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        draws.append(normal(torch.arange(5), (3, 50, 51)))
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: normal(s.int(), (3,)), "seeds must be int64"),
        (lambda s: normal(s[None], (3,)), "seeds must be int64"),
        (lambda s: normal(s, (3, -1)), "no negative size"),
        (lambda s: normal(s, (3,), step=-1), "step must be in"),
        (lambda s: normal(s, (3,), stream=2**32), "stream must be in"),
        (lambda s: normal(s, (3,), dtype=torch.int32), "dtype must be one of"),
        (lambda s: random_bits(s, -1), "count must be at least 0"),
        (lambda s: random_bits(s, 1, step=2**32), "step must be in"),
        (lambda s: normal(s, (3,), step=2**70), "step must be in"),
        (lambda s: random_bits(s, 1, stream=-(2**70)), "stream must be in"),
        (lambda s: random_bits(s.float(), 1), "seeds must be int64"),
        (lambda s: random_bits(s, 1, first_block=2**63), "first_block must fit"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(FastdiffError, match=message):
        call(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (normal_op, ((2**40, 2**40), 0, 0, torch.float32)),  # more elements than there are addresses
        (normal_op, ((3, -1), 0, 0, torch.float32)),
        (normal_op, ((3,), -1, 0, torch.float32)),
        (normal_op, ((3,), 0, 2**32, torch.float32)),
        (normal_op, ((3,), 0, 0, torch.int64)),
        (bits_op, (2**61, 0, 0, 0)),
        (bits_op, (-1, 0, 0, 0)),
        (bits_op, (1, 0, -1, 0)),
    ],
)
def test_what_the_kernels_decline(op: FusedOp, arguments: tuple) -> None:
    seeds = torch.tensor([1, 2])
    assert op.why_not(Backend.CPU, seeds, *arguments) is not None
    with use_backend("cpu"), pytest.raises(FastdiffError):
        op(seeds, *arguments)


def test_seeds_that_kernels_decline() -> None:
    for seeds in (torch.zeros(2), torch.zeros(1, 2, dtype=torch.int64), torch.tensor(3)):
        assert bits_op.why_not(Backend.CPU, seeds, 1, 0, 0, 0) is not None
    seeds = torch.arange(5)
    seeds.untyped_storage().resize_(8)
    assert "reaches beyond its storage" in str(bits_op.why_not(Backend.CPU, seeds, 1, 0, 0, 0))


def test_float64_falls_back_to_the_reference() -> None:
    seeds = torch.tensor([1])
    assert torch.equal(
        normal(seeds, (9,), dtype=torch.float64), reference.normal(seeds, (9,), dtype=torch.float64)
    )
    with use_backend("cpu"), pytest.raises(FastdiffError, match="float64"):
        normal(seeds, (9,), dtype=torch.float64)
