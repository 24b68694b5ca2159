"""A case of an op, run with gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._case import Case


def run(
    function: Callable[..., Any],
    case: Case,
    inputs: dict[str, Any],
    loss: Callable[[Tensor], Tensor] = lambda y: y.float().square().sum(),
    state: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[Tensor]:
    """Outputs, then the gradients of a loss of the first output; both in a state of the process."""
    leaves = {k: v.detach().requires_grad_() if k in case.differentiable else v for k, v in inputs.items()}
    with state():
        outputs = function(**leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    results = [output.detach() for output in outputs]
    if case.differentiable and outputs[0].numel():
        value = loss(outputs[0])
        with state():
            results += torch.autograd.grad(value, [leaves[k] for k in case.differentiable])
    return results
