"""What every Triton kernel module shares: where the kernels run, and the dtypes that they take."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import knobs

# In Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) kernels run on the CPU's tensors,
# for tests only: it takes milliseconds for what a GPU does in a microsecond.
INTERPRETED = bool(knobs.runtime.interpret)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(x: Tensor, **others: Tensor | None) -> str | None:
    """Why no Triton kernel takes these tensors, or None. All of them are on x's device already."""
    if not INTERPRETED and x.device.type != "cuda":
        return f"Triton's kernels run on CUDA devices, and x is on {x.device}"
    for name, t in {"x": x, **others}.items():
        if t is not None and t.dtype not in DTYPES:
            return f"{name} is {t.dtype}, not float32, bfloat16 or float16"
    return None
