"""What every kernel of bernoulli_step asks of its operands."""

from __future__ import annotations

from torch import Tensor

from fastdiff.ops._native import DTYPE_CODES


def why_not_rows(probability: Tensor, factor: Tensor | None) -> str | None:
    """Why no kernel takes these, or None: each sample must be contiguous, of a dtype that kernels read."""
    for name, t in (("probability", probability), ("factor", factor)):
        if t is None or not t.numel():
            continue
        if t.dtype not in DTYPE_CODES:
            return f"{name} is {t.dtype}, not float32, bfloat16 or float16"
        if not t[0].is_contiguous():
            return f"the samples of {name} [{', '.join(map(str, t.shape))}] are not contiguous"
    return None
