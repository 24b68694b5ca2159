"""attention on Triton: tensors, their strides and a plan become launches; nothing is copied on the way in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.ops import _triton
from fastdiff.ops._op import Kernel
from fastdiff.ops.attention.reference import Arguments, BackwardArguments, scale_of
from fastdiff.ops.attention.triton_backward import (
    attention_backward_keys_kernel,
    attention_backward_queries_kernel,
)
from fastdiff.ops.attention.triton_forward import attention_forward_kernel
from fastdiff.ops.attention.triton_tiles import (
    HEADS,
    LARGE_SHARED,
    LARGEST_HEAD,
    LARGEST_TILE,
    SMALL_SHARED,
    plan,
)

_LOG2E = 1 / math.log(2)


def _supports(q: Tensor, **others: Tensor) -> str | None:
    if q.shape[3] > LARGEST_HEAD:
        return f"a head has {q.shape[3]} channels, more than {LARGEST_HEAD}"
    for x in (q, *others.values()):
        if (x.stride(2) + x.stride(3)) * LARGEST_TILE >= 2**31:  # offsets within a tile are 32 bits
            return "the tokens or channels of a head lie too far apart"
    return _triton.why_not(q, **others)


def _are_aligned(*tensors: Tensor) -> bool:
    """True if rows are copied to shared memory 16 bytes at a time; others pass through registers."""
    return all(
        x.data_ptr() % 16 == 0 and all(stride == 1 or stride % 16 == 0 for stride in x.stride())
        for x in tensors
    )


def _forward_supports(given: Arguments) -> str | None:
    return _supports(given.q, k=given.k, v=given.v)


def _forward(given: Arguments) -> tuple[Tensor, Tensor]:
    return _launch_forward(given, _triton.device_of(given.q.device).shared_bytes)


def _launch_forward(given: Arguments, shared: int) -> tuple[Tensor, Tensor]:
    q, k, v, scale = *given[:3], scale_of(given.scale, given.q)
    out = torch.empty_like(q)
    b, h, t, d = q.shape
    s = k.shape[2]
    lse = q.new_empty((b, h, t), dtype=torch.float32)
    blocks, constants = plan("forward", d, q.dtype, t, s, shared, _are_aligned(q, k, v))
    sign = (scale > 0) - (scale < 0)
    _triton.launch(
        attention_forward_kernel, (b * h * blocks,), q.device,
        q, k, v, out, lse, q.stride(), k.stride(), v.stride(), out.stride(), h, t, s,
        abs(scale) * _LOG2E if sign else 1.0,
        SIGN=sign, **constants,
    )  # fmt: skip
    return out, lse


def _backward_supports(given: BackwardArguments) -> str | None:
    return _supports(given.q, k=given.k, v=given.v, grad=given.grad, out=given.out)


def _backward(given: BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    return _launch_backward(given, _triton.device_of(given.q.device).shared_bytes)


def _launch_backward(given: BackwardArguments, shared: int) -> tuple[Tensor, Tensor, Tensor]:
    grad, q, k, v, out, lse = given[:6]
    scale = scale_of(given.scale, q)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    lse = lse.contiguous()
    delta = torch.empty_like(lse)  # rowsum(do * out), from the first kernel to the second
    b, h, t, d = q.shape
    s = k.shape[2]
    aligned = _are_aligned(grad, q, k, v)
    strides = grad.stride(), q.stride(), k.stride(), v.stride()
    blocks, constants = plan("queries", d, q.dtype, t, s, shared, aligned)
    _triton.launch(
        attention_backward_queries_kernel, (b * h * blocks,), q.device,
        grad, q, k, v, out, dq, lse, delta, *strides, out.stride(), dq.stride(), h, t, s, scale,
        **constants,
    )  # fmt: skip
    blocks, constants = plan("keys", d, q.dtype, t, s, shared, aligned)
    _triton.launch(
        attention_backward_keys_kernel, (b * h * blocks,), q.device,
        grad, q, k, v, dk, dv, lse, delta, *strides, dk.stride(), dv.stride(), h, t, s, scale,
        **constants,
    )  # fmt: skip
    return dq, dk, dv


KERNELS = {
    "attention": Kernel(_forward, _forward_supports),
    "attention_backward": Kernel(_backward, _backward_supports),
}


def _call(
    shape: tuple[int, int, int, int], dtype: torch.dtype, planes: bool, shared: int, sign: int = 1
) -> None:
    """Both directions on views of a packed qkv [B, T, 3, H, D], in planes [B, 3, H, D, T]."""
    b, h, t, d = shape
    if planes:
        qkv = torch.empty((b, 3, h, d, t), dtype=dtype, device="meta").permute(1, 0, 2, 4, 3)
    else:
        qkv = torch.empty((b, t, 3, h, d), dtype=dtype, device="meta").permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    out, lse = _launch_forward(Arguments(q, k, v, sign / math.sqrt(d)), shared)
    _launch_backward(BackwardArguments(out, q, k, v, out, lse, sign / math.sqrt(d)), shared)


def _calls(shared: int) -> None:
    """Full blocks and masked ones, each number of keys that is one pass, tokens and planes."""
    for d in HEADS:
        for t in (1024, 256, 64, 65, 49, 200):
            _call((2, 4, t, d), torch.bfloat16, False, shared)
        _call((2, 4, 1024, d), torch.bfloat16, True, shared)
    _call((2, 4, 1024, 64), torch.float16, False, shared)


def _other_calls() -> None:
    """Tiles that are the same on every GPU: 16-bit tensors out of alignment, float32; and a head that is padded."""
    for d in HEADS:
        _call((2, 4, 65, d), torch.bfloat16, True, SMALL_SHARED)
    _call((2, 4, 65, 40), torch.bfloat16, False, SMALL_SHARED, sign=-1)
    _call((1, 1, 1, 64), torch.bfloat16, False, SMALL_SHARED)  # a number that is 1 is a constant to Triton
    for d in HEADS:
        _call((2, 4, 65, d), torch.float32, False, SMALL_SHARED)


CONFIGURATIONS = _triton.Recording(lambda: _calls(LARGE_SHARED))
SMALL_CONFIGURATIONS = _triton.Recording(lambda: _calls(SMALL_SHARED))
OTHER_CONFIGURATIONS = _triton.Recording(_other_calls)
