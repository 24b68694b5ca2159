"""Inputs that break attention kernels, and the shapes that ADM's attention blocks have."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case
from fastdiff.ops.attention import attention, eager

# q, k and v [B, H, T, D] are views of one packed tensor with its dimensions in this order; 3 tells them apart.
PACKED = {
    "new_order": "BT3HD",  # a linear layer's output, channels [3, H, D]
    "legacy": "BTH3D",  # the same, channels [H, 3, D]
    "planes_new": "B3HDT",  # a 1x1 convolution's output, channels first
    "planes_legacy": "BH3DT",
}


def _eager(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
    """What a user writes; in float64, where it is the exact result, the definition in place of a blockwise kernel."""
    if q.dtype != torch.float64:
        return eager.attention(q, k, v, scale=scale)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return torch.softmax(factor * (q @ k.transpose(-1, -2)), dim=-1) @ v


def _inputs(
    dtype: torch.dtype,
    device: str,
    *,
    shape: tuple[int, int, int, int],
    keys: int | None = None,
    layout: str = "separate",
    size: float = 1.0,
    scale: float | None = None,
) -> dict[str, Any]:
    """shape: [B, H, T, D]; keys: S, T if None; size: standard deviation."""
    g = torch.Generator().manual_seed(sum(shape))
    b, h, t, d = shape

    def normal(*lengths: int) -> Tensor:
        return (size * torch.randn(lengths, generator=g)).to(device, dtype)

    if layout == "separate":
        s = t if keys is None else keys
        q, k, v = normal(b, h, t, d), normal(b, h, s, d), normal(b, h, s, d)
    else:
        order, lengths = PACKED[layout], {"B": b, "H": h, "T": t, "D": d, "3": 3}
        packed = normal(*(lengths[letter] for letter in order))
        q, k, v = packed.permute([order.index(letter) for letter in "3BHTD"]).unbind(0)
    return {"q": q, "k": k, "v": v, "scale": scale}


def _case(name: str, *shape: int, benchmark: bool = False, **options: Any) -> Case:
    b, h, t, d = shape
    s = options.get("keys", t)
    return Case(
        name=name,
        op="attention",
        fused=attention,
        eager=_eager,
        inputs=functools.partial(_inputs, shape=(b, h, t, d), **options),
        differentiable=("q", "k", "v"),
        elements=2 * b * h * (t + s) * d,
        flops=4 * b * h * t * s * d,
        benchmark=benchmark,
    )


CASES = (
    _case("plain", 2, 3, 48, 32),
    _case("one_token", 2, 2, 1, 40),
    _case("one_channel", 1, 2, 9, 1),
    _case("T7-D24-new_order", 2, 3, 7, 24, layout="new_order"),
    _case("T65-D40-legacy", 2, 2, 65, 40, layout="legacy"),
    _case("T33-D20-planes_new", 2, 2, 33, 20, layout="planes_new"),
    _case("T65-D64-planes_legacy", 1, 2, 65, 64, layout="planes_legacy"),
    _case("more_keys", 1, 2, 19, 33, keys=530),
    _case("fewer_keys", 1, 2, 300, 33, keys=5),
    _case("one_key", 1, 2, 35, 16, keys=1),
    _case("widest_head", 1, 1, 70, 256, layout="new_order"),
    _case("several_blocks", 1, 1, 530, 72, layout="new_order"),
    _case("large_scores", 1, 2, 40, 64, size=6.0),
    _case("scale", 1, 2, 40, 24, scale=0.4),
    _case("negative_scale", 1, 2, 70, 24, scale=-0.3, size=3.0),
    _case("zero_scale", 1, 2, 10, 8, scale=0.0),
    _case("empty_batch", 0, 2, 5, 8),
    _case("no_query", 1, 2, 0, 8, keys=5),
    _case("B4-H4-T64-D64", 4, 4, 64, 64, layout="new_order", benchmark=True),
    _case("B1-H8-T64-D192", 1, 8, 64, 192, layout="legacy", benchmark=True),
    _case("B4-H4-T256-D64", 4, 4, 256, 64, layout="new_order", benchmark=True),
    _case("B1-H4-T256-D128", 1, 4, 256, 128, layout="legacy", benchmark=True),
    _case("B1-H4-T256-D192", 1, 4, 256, 192, layout="new_order", benchmark=True),
    _case("B1-H4-T256-D96-planes", 1, 4, 256, 96, layout="planes_legacy", benchmark=True),
    _case("B1-H4-T1024-D64", 1, 4, 1024, 64, layout="new_order", benchmark=True),
    _case("B1-H4-T1024-D96", 1, 4, 1024, 96, layout="new_order", benchmark=True),
)
