"""Giving the references' results the dtype and memory layout of the kernels' results."""

from __future__ import annotations

import torch
from torch import Tensor

_interpreter = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


def is_transformed() -> bool:
    """True inside a torch.func transform, where tensors may be batches without readable values."""
    return _interpreter() is not None


def as_like(result: Tensor, x: Tensor) -> Tensor:
    """``result`` in x's dtype, in the memory layout of ``torch.empty_like(x)``.

    Under torch.func, where layouts are not visible, the layout stays as it is: vmap cannot write a batched tensor into
    an unbatched one.
    """
    if is_transformed():
        return result.to(x.dtype)
    return torch.empty_like(x).copy_(result)
