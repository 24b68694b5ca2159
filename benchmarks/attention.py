"""How fast is attention at ADM's shapes? Our kernels, PyTorch's by name, and the products that guided-diffusion writes.

    python benchmarks/attention.py [--minutes M] [--dry-run --device cpu]

A part of ``make gpu`` (benchmarks/gpu.py has the options), which also runs alone.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from ops import backends, ceiling_seconds, is_close
from parts.gpu_store import Context, first_line
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff.bench.clock import Call
from fastdiff.bench.sides import DTYPES, call_on
from fastdiff.ops import _measured, attention

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


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """guided-diffusion's: q and k scaled beforehand, all T x T scores in memory, the softmax in float32."""
    scale = q.shape[3] ** -0.25
    weight = (q * scale) @ (k * scale).transpose(2, 3)
    return torch.softmax(weight.float(), dim=-1).to(q.dtype) @ v


def library(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One of PyTorch's kernels, and no other in its place."""
    with sdpa_kernel([kernel]):
        return F.scaled_dot_product_attention(q, k, v)


def functions(device: str) -> dict[str, Any]:
    """(q, k, v) -> out, by name."""
    sides: dict[str, Any] = {"eager": F.scaled_dot_product_attention}
    sides |= {f"eager:{name}": functools.partial(library, kernel) for name, kernel in KERNELS.items()}
    for backend in backends("attention", device):
        sides[backend] = lambda q, k, v, backend=backend: call_on(backend, attention, q, k, v)()
    return sides | {"written out": written_out}


def packed(dtype: torch.dtype, device: str, b: int, h: int, t: int, d: int, grad: bool) -> list[Tensor]:
    """q, k and v as views of one projection [B, T, 3, H, D], as the blocks make them."""
    torch.manual_seed(0)
    qkv = torch.randn(b, t, 3, h, d, device=device).to(dtype)
    return [x.transpose(1, 2).detach().requires_grad_(grad) for x in qkv.unbind(2)]


def calls(
    direction: str, sides: dict[str, Any], inputs: list[Tensor]
) -> tuple[dict[str, Call], dict[str, str]]:
    """What to time, and why something is not: it raises, or its result is not PyTorch's.

    training: forward and backward together; backward: alone.
    """
    weighting = torch.randn_like(inputs[0])

    def gradients(function: Any) -> Any:
        return torch.autograd.grad(function(*inputs), inputs, weighting)

    timed: dict[str, Call] = {}
    wrong: dict[str, str] = {}
    q, k, v = (x.detach().float() for x in inputs)
    truth = F.scaled_dot_product_attention(q, k, v)
    for name, function in sides.items():
        try:
            out = function(*inputs)
            if not is_close(out.detach(), truth):
                wrong[name] = "its forward is not PyTorch's"
                continue
            if direction == "forward":
                timed[name] = functools.partial(function, *inputs)
            elif direction == "training":
                gradients(function)
                timed[name] = functools.partial(gradients, function)
            else:
                call = functools.partial(torch.autograd.grad, out, inputs, weighting, retain_graph=True)
                timed[name] = call if ":" in name or name in ("eager", "written out") else call_on(name, call)
                timed[name]()
        except Exception as error:
            timed.pop(name, None)
            wrong[name] = first_line(error)
    return timed, wrong


def measure(context: Context, shape: tuple[int, ...], dtype: str, direction: str, key: str) -> None:
    inputs = packed(DTYPES[dtype], context.device, *shape, grad=direction != "forward")
    b, h, t, d = shape
    with torch.set_grad_enabled(direction != "forward"):
        timed, wrong = calls(direction, functions(context.device), inputs)
        times = context.interleave(timed)
    moved, flops = 4 * b * h * t * d * DTYPES[dtype].itemsize, 4 * b * h * t * t * d
    row = {"case": "B{}-H{}-T{}-D{}".format(*shape), "dtype": dtype, "direction": direction, "wrong": wrong}
    row |= {"class": _measured.attention_class(inputs[0], t), "bytes": moved, "flops": flops}
    row["seconds"] = {name: asdict(timing) for name, timing in times.items()}
    found = ceiling_seconds(context.store, moved, flops, dtype) if direction == "forward" else None
    context.store.put(key, row | {"ceiling_seconds": found})


def run(context: Context) -> None:
    for dtype in ("bfloat16",) if context.dry else ("bfloat16", "float16", "float32"):
        for shape in TINY if context.dry else SHAPES:
            for direction in ("forward", "training", "backward"):
                key = "attention/B{}-H{}-T{}-D{}".format(*shape) + f"/{dtype}/{direction}"
                context.measured(key, 1.0, functools.partial(measure, context, shape, dtype, direction, key))


if __name__ == "__main__":
    import gpu

    sys.exit(gpu.main(["--part", "attention", *sys.argv[1:]]))
