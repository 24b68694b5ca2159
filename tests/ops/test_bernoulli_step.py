"""bernoulli_step beyond the cases: exact thresholds, rates, certainty, and what bits must not depend on."""

from __future__ import annotations

import math
from typing import Any

import backends
import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import bernoulli_step, random_bits
from fastdiff.ops.bernoulli_step import step_op

each_backend = backends.each("bernoulli_step")
STEP = torch.tensor(5)
# The first words of key 0, counter 0 (Random123's known answers for philox4x32-10).
WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@each_backend
def test_published_words(backend: Backend) -> None:
    """u of the four words: 0.399, 0.881, 0.736, 0.605."""
    with use_backend(backend):
        for p in (0.3, 0.5, 0.7, 0.8, 0.9):
            expected = [float((word + 0.5) / 2**32 < p) for word in WORDS]
            got = bernoulli_step(torch.full((1, 4), p), torch.tensor([0]), torch.tensor(0))
            assert got.tolist() == [expected]


@each_backend
def test_threshold_is_exact(backend: Backend) -> None:
    """p on either side of a word's u, as near as float32 goes: also where 2^32 p has fractions."""
    n = 1 << 12 if backend is Backend.TRITON else 1 << 18
    seeds = torch.tensor([9])
    words = random_bits(seeds, n, step=5)
    u = (words.double() + 0.5) / 2**32
    p = u.float()
    small = torch.zeros_like(p) + 2.0**-33  # u < p needs a word below 0
    with use_backend(backend):
        for probability in (
            p,
            torch.nextafter(p, torch.ones(())),
            torch.nextafter(p, torch.zeros(())),
            small,
        ):
            got = bernoulli_step(probability, seeds, STEP)
            assert torch.equal(got.double(), (u < probability.double()).double())


@each_backend
def test_extreme_probabilities(backend: Backend) -> None:
    p = torch.tensor(
        [[0.0, 2.0**-149, 2.0**-40, 2.0**-33, 1 - 2.0**-24, 1.0, 2.0, -1.0, -math.inf, math.inf]]
    )
    with use_backend(backend):
        got = bernoulli_step(p, torch.tensor([3]), STEP)
    assert got.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0, 0, 1]]


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rates(backend: Backend, dtype: torch.dtype) -> None:
    """Within five standard errors of p, and of c d / (c d + (1 - c)(1 - d)) with a factor."""
    n = 1 << 12 if backend is Backend.TRITON else 1 << 17
    seeds = torch.tensor([1, 2])
    for c, d in ((0.125, None), (0.75, None), (0.25, 0.75), (0.875, 0.25), (0.5, 0.0625)):
        probability = torch.full((2, n), c, dtype=dtype)
        factor = None if d is None else torch.full((1, n), d, dtype=dtype)
        with use_backend(backend):
            bits = bernoulli_step(probability, seeds, STEP, factor=factor).double()
        p = c if d is None else c * d / (c * d + (1 - c) * (1 - d))
        assert set(bits.unique().tolist()) == {0.0, 1.0}
        assert abs(float(bits.mean()) - p) < 5 * math.sqrt(p * (1 - p) / (2 * n))


def _arguments(n: int = 5, shape: tuple[int, ...] = (3, 20, 21), **changes: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    kwargs = {
        "probability": torch.rand(n, *shape, generator=g),
        "seeds": torch.arange(n) - 2,
        "step": STEP,
        "factor": torch.rand(n, *shape, generator=g),
    }
    return kwargs | changes


@backends.each_kernel("bernoulli_step")
@pytest.mark.parametrize("with_factor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backends_agree_to_the_bit(backend: Backend, dtype: torch.dtype, with_factor: bool) -> None:
    kwargs = _arguments()
    kwargs["probability"] = kwargs["probability"].to(dtype)
    kwargs["factor"] = kwargs["factor"] if with_factor else None
    results = []
    for one in (Backend.REFERENCE, backend):
        with use_backend(one):
            results.append(bernoulli_step(**kwargs))
    assert torch.equal(*results)


def test_threads_draw_the_same() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with use_backend("cpu"):
            results.append(bernoulli_step(**_arguments(shape=(3, 50, 51))))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@each_backend
def test_a_sample_is_the_same_in_any_batch(backend: Backend) -> None:
    kwargs = _arguments(n=4, shape=(21,))
    with use_backend(backend):
        whole = bernoulli_step(**kwargs)
        for i in range(4):
            one = {k: v[i : i + 1] if v.dim() else v for k, v in kwargs.items()}
            assert torch.equal(bernoulli_step(**one), whole[i : i + 1])
        strided = {k: v[::2] if v.dim() else v for k, v in kwargs.items()}
        assert torch.equal(bernoulli_step(**strided), whole[::2])


@each_backend
def test_steps_and_streams_differ(backend: Backend) -> None:
    kwargs = _arguments()
    with use_backend(backend):
        first = bernoulli_step(**kwargs)
        assert not torch.equal(first, bernoulli_step(**kwargs | {"step": torch.tensor(6)}))
        assert not torch.equal(first, bernoulli_step(**kwargs, stream=1))


@each_backend
def test_known_bits_are_set_and_a_half_knows_nothing(backend: Backend) -> None:
    c = torch.tensor([[0.0, 1.0, 0.5, 1.0, 0.0, math.nan]])
    d = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]])  # also against a model that is certain of the opposite
    kwargs = _arguments()
    with use_backend(backend):
        assert bernoulli_step(c, torch.tensor([1]), STEP, factor=d).tolist() == d.tolist()
        half = kwargs | {"factor": torch.full((1, 3, 20, 21), 0.5)}
        assert torch.equal(bernoulli_step(**half), bernoulli_step(**kwargs | {"factor": None}))


@each_backend
def test_nan_comes_through(backend: Backend) -> None:
    c = torch.tensor([[0.0, math.nan, 1.0]])
    with use_backend(backend):
        got = bernoulli_step(c, torch.tensor([1]), STEP)
        assert got.isnan().tolist() == [[False, True, False]]
        got = bernoulli_step(torch.full((1, 3), 0.5), torch.tensor([1]), STEP, factor=c)
        assert got.isnan().tolist() == [[False, True, False]]


def test_float64_is_drawn_by_the_reference() -> None:
    kwargs = {
        k: v.double() if v is not None and v.is_floating_point() else v for k, v in _arguments().items()
    }
    assert bernoulli_step(**kwargs).dtype == torch.float64
    with use_backend("cpu"), pytest.raises(FastdiffError, match="float64"):
        bernoulli_step(**kwargs)


def test_eager_draws_with_the_same_rates() -> None:
    torch.manual_seed(0)
    with use_backend("eager"):
        bits = bernoulli_step(torch.full((1, 40_000), 0.25), torch.tensor([1]), STEP)
    assert float(bits.mean()) == pytest.approx(0.25, abs=0.011)


def _bad(**changes: Tensor | int) -> dict[str, Any]:
    return _arguments(n=2, shape=(4,)) | changes


MISTAKES = [
    (_bad(probability=torch.ones(())), "probability must be a floating-point tensor"),
    (_bad(probability=torch.zeros(2, 4).int()), "probability must be a floating-point tensor"),
    (_bad(seeds=torch.zeros(2)), "seeds must be int64"),
    (_bad(seeds=torch.arange(3)), r"seeds must have shape \[2\], got \[3\]"),
    (_bad(step=torch.tensor(1.0)), "step must be an int64 scalar tensor"),
    (_bad(step=torch.tensor([1])), "step must be an int64 scalar tensor"),
    (_bad(step=torch.tensor(-1)), r"step must be in \[0, 2\^32\), got -1"),
    (_bad(step=torch.tensor(2**32)), r"step must be in \[0, 2\^32\), got 4294967296"),
    (_bad(stream=2**32), "stream must be in"),
    (_bad(factor=torch.ones(())), r"factor must have shape"),
    (_bad(factor=torch.zeros(4)), r"factor must have shape \[2, 4\] or \[1, 4\], got \[4\]"),
    (_bad(factor=torch.zeros(2, 4).half()), "factor must be float32 or torch.float32 like probability"),
    (_bad(factor=torch.zeros(2, 4, device="meta")), "factor is on meta, probability is on cpu"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FastdiffError, match=message):
        bernoulli_step(**arguments)


@pytest.mark.parametrize("arguments", [a for a, message in MISTAKES if "meta" not in message])
def test_kernels_decline_mistakes(arguments: dict[str, Any]) -> None:
    """Before the check, which says what is wrong, has been asked."""
    args = [arguments.get(name) for name in ("probability", "seeds", "step", "factor")]
    assert step_op.why_not(Backend.CPU, *args, arguments.get("stream", 0))


@pytest.mark.parametrize("name", ["probability", "seeds", "step", "factor"])
def test_kernels_decline_tensors_beyond_their_storage(name: str) -> None:
    kwargs = _arguments()
    assert step_op.why_not(Backend.CPU, *kwargs.values(), 0) is None
    kwargs[name] = kwargs[name].clone()
    kwargs[name].untyped_storage().resize_(4)
    assert "reaches beyond its storage" in str(step_op.why_not(Backend.CPU, *kwargs.values(), 0))


@each_backend
def test_bits_have_no_slope_and_come_in_batches(backend: Backend) -> None:
    kwargs = _arguments(n=3, shape=(21,))
    c = kwargs["probability"].clone().requires_grad_()
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(bernoulli_step(**kwargs | {"probability": c}).sum(), c)
        assert not gradient.any()
        steps = torch.arange(4)
        many = torch.func.vmap(lambda step: bernoulli_step(**kwargs | {"step": step}))(steps)
        assert torch.equal(many, torch.stack([bernoulli_step(**kwargs | {"step": s}) for s in steps]))
