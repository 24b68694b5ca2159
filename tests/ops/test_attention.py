"""attention: what the cases cannot say. Errors, logsumexp, NaN, sizes, strides that do not match each other."""

from __future__ import annotations

import math

import backends
import numpy as np
import pytest
import torch
from attention_checks import check, normal, qkv, results
from torch import Tensor

from fastdiff.backend import Backend, use_backend
from fastdiff.errors import FastdiffError
from fastdiff.ops import attention
from fastdiff.ops.attention import backward_op, forward_op, reference

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize(
    ("q", "k", "v", "says"),
    [
        pytest.param(
            normal(2, 5, 8), normal(2, 5, 8), normal(2, 5, 8), r"\[B, H, T, D\].*\[2, 5, 8\]", id="rank"
        ),
        pytest.param(*(torch.zeros(1, 1, 2, 4, dtype=torch.int64) for _ in range(3)), "int64", id="integers"),
        pytest.param(
            *qkv(1, 2, 3, 4, 8)[:2], normal(1, 2, 5, 8), r"\[1, 2, S, 8\].*\[1, 2, 5, 8\]", id="k_and_v"
        ),
        pytest.param(
            normal(1, 2, 3, 8), *qkv(1, 2, 3, 4, 6)[1:], r"\[1, 2, S, 8\].*\[1, 2, 4, 6\]", id="head_size"
        ),
        pytest.param(
            normal(1, 2, 3, 8), *qkv(1, 1, 3, 4, 8)[1:], r"\[1, 2, S, 8\].*\[1, 1, 4, 8\]", id="heads"
        ),
        pytest.param(
            normal(1, 2, 3, 8), *qkv(2, 2, 3, 4, 8)[1:], r"\[1, 2, S, 8\].*\[2, 2, 4, 8\]", id="batch"
        ),
        pytest.param(*qkv(1, 2, 3, 0, 8), "nothing to attend to", id="no_keys"),
        pytest.param(*qkv(1, 2, 3, 4, 0), "nothing to attend to", id="no_channels"),
        pytest.param(*qkv(1, 2, 3, 4, 8)[:2], normal(1, 2, 4, 8).half(), "float16", id="dtype"),
        pytest.param(*qkv(1, 2, 3, 4, 8)[:2], _meta(1, 2, 4, 8), "meta", id="device"),
        pytest.param(*(torch.ones(()) for _ in range(3)), r"\[B, H, T, D\].*\[\]", id="scalars"),
        pytest.param(
            normal(1, 2, 3, 8), *(normal(8) for _ in range(2)), r"\[1, 2, S, 8\].*\[8\]", id="k_rank"
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


Q, K, V = qkv(1, 2, 3, 4, 8)
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
    q, k, v = qkv(1, 2, 3, 4, 8, torch.bfloat16)
    out, lse = forward_op(q, k, v, None)
    grad = normal(1, 2, 3, 8, seed=5)
    for a, b in zip(
        backward_op(grad, q, k, v, out, lse, None),
        backward_op(grad.bfloat16(), q, k, v, out, lse, None),
        strict=True,
    ):
        assert torch.equal(a, b)


@backends.each("attention")
def test_default_scale_is_the_root_of_the_head_size(backend: Backend) -> None:
    q, k, v = qkv(1, 2, 7, 9, 24)
    with use_backend(backend):
        assert torch.equal(attention(q, k, v), attention(q, k, v, scale=1 / math.sqrt(24)))


def test_transforms_of_torch_func() -> None:
    """A batch of keys for one q, gradients of each: against the reference in float64."""
    q, k, v = qkv(1, 2, 5, 7, 8)
    exact = tuple(x.double() for x in (q, k, v))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.attention(reference.Arguments(q, k, v))[0]

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


@pytest.mark.parametrize("scale", [0.5, -0.5, 0.0], ids=str)
@pytest.mark.parametrize("size", [1.0, 20.0], ids=["small", "large"])
@backends.each("attention")
def test_logsumexp(backend: Backend, size: float, scale: float) -> None:
    q, k, v = qkv(1, 2, 37, 300, 24)
    q = q * size
    with use_backend(backend):
        _, lse = forward_op(q, k, v, scale)
    truth = torch.logsumexp(scale * q.double() @ k.double().mT, dim=-1)
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    torch.testing.assert_close(lse.double(), truth, rtol=2e-6, atol=2e-6)


HEADS = (1, 3, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 96, 100, 128, 192, 250, 255, 256)


@pytest.mark.parametrize(
    ("backend", "head_dim", "dtype"),
    [
        pytest.param(
            *(backend, head_dim, dtype),
            id=f"{backend.value}-{head_dim}-{short}",
            marks=[pytest.mark.proof] * (backend in backends.SIMULATED and (short, i % 3) != ("bf16", 0)),
        )
        for backend in backends.of("attention", Backend.REFERENCE)
        for i, head_dim in enumerate(HEADS)
        for short, dtype in DTYPES.items()
    ],
    indirect=["backend"],
)
def test_every_head_size(backend: Backend, head_dim: int, dtype: torch.dtype) -> None:
    """Rows, panels and their remainders."""
    check(backend, *qkv(1, 2, 37, 70, head_dim, dtype))


@backends.each_kernel("attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64, 65])
def test_edges_of_tiles(backend: Backend, tokens: int, dtype: torch.dtype) -> None:
    check(backend, *qkv(1, 1, tokens, 66 - tokens, 40, dtype))


@backends.each_kernel("attention")
@pytest.mark.parametrize("keys", [64, 65, 128, 129, 256, 257])
def test_one_pass_and_several(backend: Backend, keys: int) -> None:
    """Triton has one block of 64, 128 or 256 keys, and a loop above that."""
    check(backend, *qkv(1, 1, 66, keys, 32, torch.bfloat16), 0.2)


def test_many_tokens() -> None:
    check(Backend.CPU, *qkv(1, 1, 4096, 4096, 20))


@backends.each_kernel("attention")
def test_sums_are_float32(backend: Backend) -> None:
    """4096 equal weights of 1/4096: a sum in 16 bits would stop growing long before 1."""
    q, k = torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 4096, 8, dtype=torch.bfloat16)
    v = torch.ones_like(k)
    with use_backend(backend):
        out, lse = forward_op(q, k, v, 1.0)
    assert torch.equal(out, torch.ones_like(out))
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(4096)))


@backends.each("attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_nan_goes_where_it_belongs(backend: Backend, dtype: torch.dtype) -> None:
    q, k, v = qkv(1, 2, 40, 270, 24, dtype)
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


@backends.each("attention")
def test_nan_reaches_the_gradients(backend: Backend) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(1, 1, 40, 40, 24))
    weight = torch.ones(1, 1, 40, 24)
    weight[0, 0, 33, 3] = math.nan
    with use_backend(backend):
        dq, dk, dv = torch.autograd.grad((attention(q, k, v) * weight).sum(), (q, k, v))
    rows = torch.zeros(40, dtype=torch.bool)
    rows[33] = True
    assert torch.equal(dq[0, 0].isnan().any(-1), rows)
    assert dk.isnan().all()
    assert dv[..., 3].isnan().all() and not dv[..., 4].isnan().any()


@backends.each_kernel("attention")
def test_scores_beyond_the_range_of_exp(backend: Backend) -> None:
    """A weight of one on the nearest key: no overflow, no 0/0."""
    k = 100 * torch.eye(40)[None, None]
    with use_backend(backend):
        torch.testing.assert_close(attention(k, k, k, scale=10.0), k)
        torch.testing.assert_close(attention(-k, k, k, scale=-10.0), k)


@backends.each_kernel("attention")
def test_masked_keys_of_very_small_scores(backend: Backend) -> None:
    """lse = -300: what a missing key would weigh is beyond float32, and must not reach dq."""
    q, k, v = torch.full((1, 1, 5, 16), 10.0), torch.full((1, 1, 5, 16), -10.0), normal(1, 1, 5, 16)
    check(backend, q, k, v, 0.2)


@backends.each_kernel("attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_scores_of_minus_infinity_count_nothing(backend: Backend, dtype: torch.dtype) -> None:
    """The whole first tile of keys: nothing but zeros to begin with, and no NaN."""
    q = torch.full((1, 1, 3, 32), 1.0, dtype=dtype)
    k, v = torch.zeros(1, 1, 70, 32, dtype=dtype), normal(1, 1, 70, 32, dtype=dtype)
    k[:, :, :64] = -math.inf
    with use_backend(backend):
        out = attention(q, k, v)
    expected = v[:, :, 64:].double().mean(2, keepdim=True).expand(1, 1, 3, 32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)


def _strided(x: Tensor, order: tuple[int, ...], gap: int = 1) -> Tensor:
    """The same values with the dimensions laid out in `order`; every `gap`-th element of the last one is used."""
    memory = x.permute(order)
    spread = memory.new_full((*memory.shape[:-1], memory.shape[-1] * gap), math.nan)
    spread[..., ::gap] = memory
    return spread[..., ::gap].permute([order.index(i) for i in range(4)])


@backends.each_kernel("attention")
@pytest.mark.parametrize("tokens", [64, 44], ids=["packs_of_tokens", "single_tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_strides_that_do_not_match(backend: Backend, dtype: torch.dtype, tokens: int) -> None:
    """Channels or tokens side by side, neither, gaps, starts off alignment: the same numbers, laid out like inputs."""
    b, h = 2, 2
    if backend is Backend.TRITON:  # whose interpreter takes a second for each head
        b, h = (2, 1) if dtype == torch.float32 else (1, 2)
    q, k, v = qkv(b, h, tokens, 45, 24, dtype)
    grad = normal(b, h, tokens, 24, seed=3, dtype=dtype)
    unaligned = torch.cat([v[..., :1], v], dim=-1)[..., 1:]  # starts 2 or 4 bytes off
    plain = results(q, k, v, grad, 0.2, backend)
    for views in (
        (_strided(q, (0, 2, 1, 3)), _strided(k, (0, 1, 3, 2), gap=2), _strided(v, (3, 2, 1, 0)), grad),
        (_strided(q, (0, 1, 3, 2)), _strided(k, (0, 2, 1, 3)), unaligned, _strided(grad, (3, 2, 1, 0), 3)),
    ):
        other = results(*views, 0.2, backend)
        tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps  # sums in another order
        torch.testing.assert_close(plain, other, rtol=tolerance, atol=tolerance)
        for x, result in zip((views[0], *views[:3]), (other[0], *other[2:]), strict=True):
            assert result.stride() == torch.empty_like(x).stride()


@backends.each_kernel("attention")
def test_heads_beyond_32_bits(backend: Backend) -> None:
    """Batches 2^30 elements apart: the third begins where a 32-bit offset is negative."""
    memory = torch.from_numpy(np.empty(2**31 + 2048, np.float16))  # touched only where the heads are
    near = qkv(3, 1, 20, 20, 16, torch.float16)
    far = [memory[i * 512 :].as_strided(x.shape, (2**30, 16, 16, 1)).copy_(x) for i, x in enumerate(near)]
    with use_backend(backend):
        results = [forward_op(near[0], *keys, 0.25) for keys in (near[1:], far[1:])]
    torch.testing.assert_close(*results, rtol=2**-7, atol=2**-7)


@backends.each_kernel("attention")
def test_expanded_inputs(backend: Backend) -> None:
    """Stride 0: one head of keys for all queries, and the gradient of a plain sum."""
    q = normal(1, 4, 20, 16).requires_grad_()
    k, v = (normal(1, 1, 30, 16, seed=i).requires_grad_() for i in (1, 2))
    results = []
    for one in (backend, Backend.REFERENCE):
        with use_backend(one):
            out = attention(q, k.expand(1, 4, 30, 16), v.expand(1, 4, 30, 16))
            results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@backends.each("attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_no_queries_means_no_gradient(backend: Backend, dtype: torch.dtype) -> None:
    q, k, v = qkv(1, 2, 0, 5, 8, dtype)
    out, _, dq, dk, dv = results(q, k, v, q, 1.0, backend)
    assert out.shape == dq.shape == (1, 2, 0, 8)
    assert not dk.any() and not dv.any()


@backends.each_kernel("attention")
def test_what_no_kernel_takes_is_said(backend: Backend) -> None:
    q, k, v = qkv(1, 1, 3, 4, 257)
    with use_backend(backend):
        if backend in backends.SIMULATED:
            with pytest.raises(FastdiffError, match="257 channels"):
                attention(q, k, v)
        with pytest.raises(FastdiffError, match="float64"):
            attention(*(x[..., :8].double() for x in (q, k, v)))
    assert attention(q.double(), k.double(), v.double()).dtype == torch.float64  # unforced: the reference
