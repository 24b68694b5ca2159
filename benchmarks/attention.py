"""How fast is attention at ADM's shapes? Our kernels, PyTorch's by name, and the products that guided-diffusion writes.

    python benchmarks/attention.py [--minutes M] [--dry-run --device cpu]

A part of ``make gpu`` (benchmarks/gpu.py has the options), which also runs alone.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from ops import Function, backends, ceiling_seconds, measure
from parts.gpu_store import Context
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff.bench.sides import DTYPES
from fastdiff.ops import _measured, attention
from fastdiff.ops._case import Case

SHAPES = (  # batch, heads, tokens, head size: ADM-64 and -256, -128 with its four heads, the 64 to 256 upsampler
    (32, 6, 1024, 64),
    (32, 9, 256, 64),
    (32, 12, 64, 64),
    (8, 8, 1024, 64),
    (1, 8, 1024, 64),
    (16, 4, 1024, 128),
    (16, 4, 256, 192),
    (16, 4, 64, 256),
    (8, 4, 1024, 96),
)
TINY = ((1, 2, 64, 16), (1, 2, 65, 32))
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def chosen_by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """guided-diffusion's: q and k scaled beforehand, all T x T scores in memory, the softmax in float32."""
    scale = q.shape[3] ** -0.25
    weight = (q * scale) @ (k * scale).transpose(2, 3)
    return torch.softmax(weight.float(), dim=-1).to(q.dtype) @ v


def library(kernel: SDPBackend, /, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One of PyTorch's kernels, and no other in its place."""
    with sdpa_kernel([kernel]):
        return F.scaled_dot_product_attention(q, k, v)


def functions(device: str) -> dict[str, Function]:
    """(q, k, v) -> out, by name, eager PyTorch's own choice apart."""
    sides = {
        f"eager:{name}": Function(functools.partial(library, kernel)) for name, kernel in KERNELS.items()
    }
    sides |= {backend: Function(attention, backend) for backend in backends("attention", device)}
    return sides | {"written out": Function(written_out)}


def packed(dtype: torch.dtype, device: str, *, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """q, k and v as views of one projection [B, T, 3, H, D], as the blocks make them."""
    b, h, t, d = shape
    torch.manual_seed(0)
    qkv = torch.randn(b, t, 3, h, d, device=device).to(dtype)
    return dict(zip("qkv", (x.transpose(1, 2) for x in qkv.unbind(2)), strict=True))


def case(*shape: int) -> Case:
    b, h, t, d = shape
    return Case(
        name=f"B{b}-H{h}-T{t}-D{d}",
        op="attention",
        fused=attention,
        eager=chosen_by_pytorch,
        inputs=functools.partial(packed, shape=shape),
        differentiable=("q", "k", "v"),
        elements=4 * b * h * t * d,
        flops=4 * b * h * t * t * d,
    )


def put_row(context: Context, shape: tuple[int, ...], dtype: str, direction: str, key: str) -> None:
    sides = functions(context.device)
    row: dict[str, Any] = measure(case(*shape), dtype, direction, context.device, sides, context.interleave)
    row["class"] = _measured.attention_class(torch.empty(shape, dtype=DTYPES[dtype]), shape[2])
    row["ceiling_seconds"] = ceiling_seconds(context.store, row["bytes"], row["flops"], dtype)
    context.store.put(key, row)


def run(context: Context) -> None:
    """The part of ``make gpu``. training: forward and backward together; backward: alone."""
    for dtype in ("bfloat16",) if context.dry else ("bfloat16", "float16", "float32"):
        for shape in TINY if context.dry else SHAPES:
            for direction in ("forward", "training", "backward"):
                key = f"attention/{case(*shape).name}/{dtype}/{direction}"
                context.measured(key, 1.0, functools.partial(put_row, context, shape, dtype, direction, key))


if __name__ == "__main__":
    import gpu

    sys.exit(gpu.main(["--part", "attention", *sys.argv[1:]]))
