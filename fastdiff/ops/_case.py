"""Named inputs of an op: what the test module, the benchmark module and ``fastdiff info`` iterate over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One readable situation an op must get right, and how to judge it.

    ``fused`` and ``eager`` take the same keyword arguments and return a tensor or a tuple of tensors. ``eager``
    is what a user would write today, in plain PyTorch; run on float64 inputs it is the truth. ``inputs`` builds
    the arguments, the same for every call; every floating-point tensor among them has the given dtype, except
    where the op itself wants another (tables, for one).
    """

    name: str  # e.g. "channels_last-odd"; the test id is "<op>-<backend>-<dtype>-<name>"
    op: str
    fused: Callable[..., Any]
    eager: Callable[..., Any]
    inputs: Callable[[torch.dtype, str], dict[str, Any]]
    differentiable: tuple[str, ...] = ()  # arguments whose gradients are compared
    elements: int = 0  # tensor elements that the forward must read and write at least
    # Of the formula: sums, products, quotients, roots, exponentials and logarithms of floats count one each.
    # Convolutions by their direct form.
    flops: int = 0
    benchmark: bool = False  # also a row of the benchmark
    falls_back: bool = False  # no kernel takes these inputs: the reference runs, and the log says why
    keeps_layout: bool = True  # the first result has the dtype and strides of the first input
    # Gradients that are left to PyTorch's own kernels, whose last bits depend on the number of threads.
    library_gradients: tuple[str, ...] = ()
    # Timed in eager's place, where the truth computes more than users do.
    baseline: Callable[..., Any] | None = None
