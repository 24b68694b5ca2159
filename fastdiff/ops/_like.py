"""Results of the references in the dtype and memory layout that kernels give them."""

from __future__ import annotations

import torch
from torch import Tensor

_interpreter = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


def is_transformed() -> bool:
    """Whether torch.func transforms what runs now: tensors may be batches, without a value of their own to look at."""
    return _interpreter() is not None


def as_like(result: Tensor, x: Tensor) -> Tensor:
    """``result`` as ``torch.empty_like(x)`` lies in memory, in x's dtype.

    Under torch.func, where derivatives are wanted and no layout is seen, in whichever layout it has: vmap cannot
    write a tensor of a batch into one that belongs to no batch.
    """
    if is_transformed():
        return result.to(x.dtype)
    return torch.empty_like(x).copy_(result)
