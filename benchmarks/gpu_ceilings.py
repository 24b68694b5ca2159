"""The two ceilings: what a copy moves a second, and what large matrix products reach."""

from __future__ import annotations

import torch
from gpu_context import Context


def run(context: Context) -> None:
    key = "ceilings/speed"
    if not context.wanted(key):
        return
    count, size = (1 << 18, 256) if context.dry else (1 << 29, 8192)
    source = torch.zeros(count, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    copied = context.interleave({"copy": lambda: target.copy_(source)})["copy"]
    dtypes = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "tf32": torch.float32,
        "float32": torch.float32,
    }
    tflops = {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype in dtypes.items():
        a, b = (torch.randn(size, size, device=context.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        try:
            timing = context.interleave({name: lambda a=a, b=b: a @ b})[name]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        tflops[name] = 2 * size**3 / timing.median / 1e12
    row = {"copy_bytes": 2 * count, "copy_gb_per_s": 2 * count / copied.median / 1e9}
    context.store.put(key, row | {"matmul_size": size, "matmul_tflops": tflops})
