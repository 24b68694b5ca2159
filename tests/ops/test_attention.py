"""attention: what the cases cannot say. Errors, logsumexp, NaN, threads, strides that do not match each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import attention
from fastdiff.ops.attention import backward_op, forward_op, reference

BACKENDS = ["reference", "cpu"]


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _qkv(b: int, h: int, t: int, s: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [_normal(b, h, n, d, seed=i, dtype=dtype) for i, n in enumerate((t, s, s))]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize(
    ("q", "k", "v", "says"),
    [
        pytest.param(
            _normal(2, 5, 8), _normal(2, 5, 8), _normal(2, 5, 8), r"\[B, H, T, D\].*\[2, 5, 8\]", id="rank"
        ),
        pytest.param(*(torch.zeros(1, 1, 2, 4, dtype=torch.int64) for _ in range(3)), "int64", id="integers"),
        pytest.param(
            *_qkv(1, 2, 3, 4, 8)[:2], _normal(1, 2, 5, 8), r"\[1, 2, S, 8\].*\[1, 2, 5, 8\]", id="k_and_v"
        ),
        pytest.param(
            _normal(1, 2, 3, 8), *_qkv(1, 2, 3, 4, 6)[1:], r"\[1, 2, S, 8\].*\[1, 2, 4, 6\]", id="head_size"
        ),
        pytest.param(
            _normal(1, 2, 3, 8), *_qkv(1, 1, 3, 4, 8)[1:], r"\[1, 2, S, 8\].*\[1, 1, 4, 8\]", id="heads"
        ),
        pytest.param(
            _normal(1, 2, 3, 8), *_qkv(2, 2, 3, 4, 8)[1:], r"\[1, 2, S, 8\].*\[2, 2, 4, 8\]", id="batch"
        ),
        pytest.param(*_qkv(1, 2, 3, 0, 8), "nothing to attend to", id="no_keys"),
        pytest.param(*_qkv(1, 2, 3, 4, 0), "nothing to attend to", id="no_channels"),
        pytest.param(*_qkv(1, 2, 3, 4, 8)[:2], _normal(1, 2, 4, 8).half(), "float16", id="dtype"),
        pytest.param(*_qkv(1, 2, 3, 4, 8)[:2], _meta(1, 2, 4, 8), "meta", id="device"),
        pytest.param(*(torch.ones(()) for _ in range(3)), r"\[B, H, T, D\].*\[\]", id="scalars"),
        pytest.param(
            _normal(1, 2, 3, 8), *(_normal(8) for _ in range(2)), r"\[1, 2, S, 8\].*\[8\]", id="k_rank"
        ),
    ],
)
def test_mistakes_are_explained(q: Tensor, k: Tensor, v: Tensor, says: str) -> None:
    with pytest.raises(FastdiffError, match=says):
        attention(q, k, v)
    with use_backend("eager"), pytest.raises(FastdiffError, match=says):
        attention(q, k, v)


def _beyond_its_storage(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(8)
    return x


Q, K, V = _qkv(1, 2, 3, 4, 8)
OUT, LSE, GRAD = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3), torch.ones(1, 2, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((Q[0], K, V), "do not fit together"),
        ((Q, K[0], V[0]), "do not fit together"),
        ((Q, K, V[:, :, :3]), "do not fit together"),
        ((Q, K[:, :1], V[:, :1]), "do not fit together"),
        ((Q, K[..., :7], V[..., :7]), "do not fit together"),
        ((Q, K[:, :, :0], V[:, :, :0]), "do not fit together"),
        ((Q[..., :0], K[..., :0], V[..., :0]), "do not fit together"),
        ((Q, K, V.half()), "do not fit together"),
        ((Q.double(), K.double(), V.double()), "q is torch.float64"),
        ((_beyond_its_storage(Q), K, V), "q reaches beyond its storage"),
        ((Q, K, _beyond_its_storage(V)), "k or v reaches beyond its storage"),
        ((GRAD[:, :, :2], Q, K, V, OUT, LSE), "do not fit together"),
        ((GRAD, Q, K, V, OUT.half(), LSE), "do not fit together"),
        ((GRAD, Q, K, V, OUT[..., :4], LSE), "do not fit together"),
        ((GRAD, Q, K, V, OUT, LSE.double()), "do not fit together"),
        ((GRAD, Q, K, V, OUT, LSE[..., :2]), "do not fit together"),
        ((GRAD, Q, K, V, OUT, _beyond_its_storage(LSE)), "lse reaches beyond its storage"),
        ((GRAD.double(), Q, K, V, OUT, LSE), "grad is torch.float64"),
    ],
    ids=range(18),
)
def test_kernels_decline_what_they_cannot_read(arguments: tuple[Tensor, ...], says: str) -> None:
    op = forward_op if len(arguments) == 3 else backward_op
    assert says in str(op.why_not(Backend.CPU, *arguments, None))


def test_a_gradient_of_another_dtype_is_converted() -> None:
    q, k, v = _qkv(1, 2, 3, 4, 8, torch.bfloat16)
    out, lse = forward_op(q, k, v, None)
    grad = _normal(1, 2, 3, 8, seed=5)
    for a, b in zip(
        backward_op(grad, q, k, v, out, lse, None),
        backward_op(grad.bfloat16(), q, k, v, out, lse, None),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_default_scale_is_the_root_of_the_head_size() -> None:
    q, k, v = _qkv(1, 2, 7, 9, 24)
    for backend in BACKENDS:
        with use_backend(backend):
            assert torch.equal(attention(q, k, v), attention(q, k, v, scale=1 / math.sqrt(24)))


def test_transforms_of_torch_func() -> None:
    """Forward mode, a batch of keys for one q, gradients of each: against the reference in float64."""
    q, k, v = _qkv(1, 2, 5, 7, 8)
    tangents = tuple(x.flip(2) for x in (q, k, v))
    exact = tuple(x.double() for x in (q, k, v))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.attention(q, k, v, None)[0]

    _, got = torch.func.jvp(attention, (q, k, v), tangents)
    _, expected = torch.func.jvp(plain, exact, tuple(t.double() for t in tangents))
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)

    keys = torch.stack([k, k.flip(2), 2 * k])
    got = torch.func.vmap(attention, in_dims=(None, 0, None))(q, keys, v)
    assert torch.equal(got, torch.stack([attention(q, one, v) for one in keys]))

    def loss(function, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return function(q, k, v).square().sum()

    per_keys = torch.func.vmap(torch.func.grad(lambda *x: loss(attention, *x)), in_dims=(None, 0, None))
    expected = torch.stack(
        [torch.func.grad(lambda *x: loss(plain, *x))(exact[0], one.double(), exact[2]) for one in keys]
    )
    torch.testing.assert_close(per_keys(q, keys, v).double(), expected, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_the_references() -> None:
    leaves = [x.requires_grad_() for x in _qkv(1, 1, 4, 5, 6)]
    (dq,) = torch.autograd.grad(attention(*leaves).square().sum(), leaves[:1], create_graph=True)
    got = torch.autograd.grad(dq.square().sum(), leaves)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, _ = reference.attention(*exact, None)
    (dq,) = torch.autograd.grad(out.square().sum(), exact[:1], create_graph=True)
    for a, b in zip(got, torch.autograd.grad(dq.square().sum(), exact), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


def test_cpu_backend_refuses_float64() -> None:
    q, k, v = (x.double() for x in _qkv(1, 1, 3, 4, 8))
    with use_backend("cpu"), pytest.raises(FastdiffError, match="float64"):
        attention(q, k, v)
    assert attention(q, k, v).dtype == torch.float64  # unforced: the reference


@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0], ids=str)
@pytest.mark.parametrize("size", [1.0, 20.0], ids=["small", "large"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logsumexp(backend: str, size: float, scale: float) -> None:
    q, k, v = _qkv(2, 2, 37, 300, 24)
    q = q * size
    with use_backend(backend):
        _, lse = forward_op(q, k, v, scale)
    truth = torch.logsumexp(scale * q.double() @ k.double().mT, dim=-1)
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    torch.testing.assert_close(lse.double(), truth, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("head_dim", [1, 3, 8, 15, 16, 17, 24, 31, 33, 48, 64, 96, 100, 128, 192, 255, 256])
def test_every_head_size(head_dim: int, dtype: torch.dtype) -> None:
    """Rows, panels and their remainders; against float32 arithmetic, so within rounding of the result."""
    q, k, v = _qkv(1, 2, 37, 70, head_dim, dtype)
    grad = _normal(1, 2, 37, head_dim, seed=3, dtype=dtype)
    scale = 1 / math.sqrt(head_dim)
    with use_backend("cpu"):
        out, lse = forward_op(q, k, v, scale)
        grads = backward_op(grad, q, k, v, out, lse, scale)
    with use_backend("reference"):
        expected, _ = forward_op(*(x.double() for x in (q, k, v)), scale)
        expected_grads = backward_op(*(x.double() for x in (grad, q, k, v, expected, lse)), scale)
    tolerance = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for got, truth in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [2, 15, 16, 17, 63, 64, 257, 4096])
def test_every_length(tokens: int) -> None:
    q, k, v = _qkv(1, 1, tokens, tokens, 20)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with use_backend("cpu"):
        out = attention(q, k, v)
        grads = torch.autograd.grad(out.square().sum(), leaves)
    with use_backend("reference"):
        expected = attention(q, k, v)
        expected_grads = torch.autograd.grad(expected.square().sum(), leaves)
    torch.testing.assert_close((out, *grads), (expected, *expected_grads), rtol=1e-4, atol=1e-5)


def test_sums_are_float32() -> None:
    """4096 equal weights of 1/4096: a sum in 16 bits would stop growing long before 1."""
    q, k = torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 8, dtype=torch.bfloat16)
    v = torch.ones_like(k)
    with use_backend("cpu"):
        out, lse = forward_op(q, k, v, 1.0)
    assert torch.equal(out, torch.ones_like(out))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(4096)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_goes_where_it_belongs(backend: str) -> None:
    q, k, v = _qkv(1, 2, 40, 270, 24)
    with use_backend(backend):
        for poisoned, place, expected in (
            (q, (0, 1, 33, 5), (0, 1, 33)),  # a query: its own row
            (k, (0, 1, 269, 5), (0, 1)),  # a key: all queries of the head
            (k, (0, 1, 0, 5), (0, 1)),  # in the first block: it must outlast the later ones
            (v, (0, 1, 7, 5), (0, 1, slice(None), 5)),  # a value: that channel of the head
        ):
            kept = poisoned[place].item()
            poisoned[place] = math.nan
            out = attention(q, k, v)
            poisoned[place] = kept
            mask = torch.zeros_like(out, dtype=torch.bool)
            mask[expected] = True
            assert torch.equal(out.isnan(), mask)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_gradients(backend: str) -> None:
    q, k, v = (x.requires_grad_() for x in _qkv(1, 1, 40, 40, 24))
    weight = torch.ones(1, 1, 40, 24)
    weight[0, 0, 33, 3] = math.nan
    with use_backend(backend):
        dq, dk, dv = torch.autograd.grad((attention(q, k, v) * weight).sum(), (q, k, v))
    rows = torch.zeros(40, dtype=torch.bool)
    rows[33] = True
    assert torch.equal(dq[0, 0].isnan().any(-1), rows)
    assert dk.isnan().all()
    assert dv[..., 3].isnan().all() and not dv[..., 4].isnan().any()


def test_scores_beyond_the_range_of_exp() -> None:
    """A weight of one on the nearest key: no overflow, no 0/0."""
    k = 100 * torch.eye(40)[None, None]
    with use_backend("cpu"):
        torch.testing.assert_close(attention(k, k, k, scale=10.0), k)
        torch.testing.assert_close(attention(-k, k, k, scale=-10.0), k)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("shape", [(1, 3, 300, 300, 40), (2, 2, 700, 530, 16)], ids=str)
def test_threads_do_not_change_a_bit(shape: tuple[int, int, int, int, int]) -> None:
    q, k, v = _qkv(*shape)
    results = []
    with use_backend("cpu"):
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out, lse = forward_op(q, k, v, 0.2)
            results.append((out, lse, *backward_op(out, q, k, v, out, lse, 0.2)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def _strided(x: Tensor, order: tuple[int, ...], gap: int = 1) -> Tensor:
    """The same values with the dimensions laid out in `order`; every `gap`-th element of the last one is used."""
    memory = x.permute(order)
    spread = memory.new_full((*memory.shape[:-1], memory.shape[-1] * gap), math.nan)
    spread[..., ::gap] = memory
    return spread[..., ::gap].permute([order.index(i) for i in range(4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_strides_that_do_not_match(dtype: torch.dtype) -> None:
    """Four tensors, four layouts, gaps among them: the same numbers as contiguous ones, and gradients like inputs."""
    q, k, v = _qkv(2, 3, 70, 45, 40, dtype)
    grad = _normal(2, 3, 70, 40, seed=3, dtype=dtype)
    views = [
        _strided(q, (0, 2, 1, 3)),
        _strided(k, (0, 1, 3, 2), gap=2),
        _strided(v, (3, 2, 1, 0)),
        _strided(grad, (1, 0, 2, 3), gap=3),
    ]
    results = []
    for a, b, c, g in ((q, k, v, grad), views):
        leaves = [x.detach().requires_grad_() for x in (a, b, c)]
        with use_backend("cpu"):
            out = attention(*leaves)
            grads = torch.autograd.grad(out, leaves, g)
        for x, result in zip((a, *leaves), (out, *grads), strict=True):
            assert result.stride() == torch.empty_like(x).stride()
        results.append((out, *grads))
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_expanded_inputs() -> None:
    """Stride 0: one head of keys for all queries, and the gradient of a plain sum."""
    q = _normal(1, 4, 20, 16).requires_grad_()
    k, v = (_normal(1, 1, 30, 16, seed=i).requires_grad_() for i in (1, 2))
    results = []
    for backend in BACKENDS:
        with use_backend(backend):
            out = attention(q, k.expand(1, 4, 30, 16), v.expand(1, 4, 30, 16))
            results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_queries_means_no_gradient(backend: str) -> None:
    q, k, v = _qkv(1, 2, 0, 5, 8)
    with use_backend(backend):
        out, lse = forward_op(q, k, v, 1.0)
        dq, dk, dv = backward_op(out, q, k, v, out, lse, 1.0)
    assert out.shape == dq.shape == (1, 2, 0, 8)
    assert not dk.any() and not dv.any()


def test_gradcheck_of_the_reference() -> None:
    q, k, v = (x.double().requires_grad_() for x in _qkv(1, 2, 3, 5, 4))
    with use_backend("reference"):
        assert torch.autograd.gradcheck(lambda *x: attention(*x, scale=-0.7), (q, k, v))
