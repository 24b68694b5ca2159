"""Multi-head attention on strided views, without copies of the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend, forced
from fastdiff.errors import FastdiffError
from fastdiff.ops import _measured
from fastdiff.ops._op import FusedOp
from fastdiff.ops.attention import eager, reference
from fastdiff.ops.attention.reference import Arguments, BackwardArguments


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    r"""Scaled dot-product attention, ``softmax(scale * q k^T) v``.

    Args:
        q: [B, H, T, D], float32, bfloat16, float16 or float64, any strides (a view of a packed qkv is fine).
        k, v: [B, H, S, D], same dtype and device as q, any strides.
        scale: 1/sqrt(D) if None.

    Returns:
        [B, H, T, D] in q's dtype, dense, with its dimensions laid out in the order of q's strides
        (``torch.empty_like(q)``). Scores and softmax are float32 (float64 for float64 input).
        On GPUs where PyTorch's own call was measured or is assumed to be faster (docs/gpu.md), that call is made,
        visible to autograd and to the compiler; the layout of the result is then PyTorch's.

    Raises:
        FastdiffError: shapes, dtypes or devices that do not fit together.

    Source: Vaswani et al. 2017, eq. 1; blockwise softmax, Milakov & Gimelshein 2018, Dao et al. 2022.
    """
    backend = forced()
    library = "eager" if backend is Backend.EAGER else None
    if backend is None:
        library = _measured.library_attention(q, k, v)
    if library:
        _check(Arguments(q, k, v))
        return eager.attention(q, k, v, scale=scale, kernel=library.partition(":")[2])
    return forward_op(q, k, v, scale)[0]


def _check(given: Arguments) -> None:
    q, k, v, _ = given
    if q.dim() != 4 or not q.is_floating_point():
        raise FastdiffError(
            f"attention: q must be a floating-point tensor [B, H, T, D], got {q.dtype} {list(q.shape)}"
        )
    b, h, _, d = q.shape
    if k.shape != v.shape or k.dim() != 4 or (k.shape[0], k.shape[1], k.shape[3]) != (b, h, d):
        raise FastdiffError(
            f"attention: k and v must have shape [{b}, {h}, S, {d}] to go with q {list(q.shape)},"
            f" got {list(k.shape)} and {list(v.shape)}"
        )
    if k.shape[2] == 0 or d == 0:
        raise FastdiffError(f"attention: k and v {list(k.shape)} hold nothing to attend to")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise FastdiffError(
            f"attention: q, k and v must share dtype and device, got {q.dtype} on {q.device},"
            f" {k.dtype} on {k.device}, {v.dtype} on {v.device}"
        )


def _fake_forward(given: Arguments) -> tuple[Tensor, Tensor]:
    q = given.q
    stats = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=stats)


def _fake_backward(given: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(given.q), torch.empty_like(given.k), torch.empty_like(given.v)


forward_op = FusedOp(
    "attention",
    Arguments,
    "(Tensor out, Tensor lse)",
    reference=reference.attention,
    fake=_fake_forward,
    check=_check,
)

backward_op = FusedOp(
    "attention_backward",
    BackwardArguments,
    "(Tensor dq, Tensor dk, Tensor dv)",
    reference=reference.attention_backward,
    fake=_fake_backward,
)
backward_op.differentiate_reference()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return (*backward_op(grad, *ctx.saved_tensors, ctx.scale), None)


forward_op.register_autograd(_backward, _setup_context)
