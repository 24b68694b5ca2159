"""Named inputs of an op, which tests, benchmarks and ``fastdiff info`` iterate over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def by_name(function: Callable[[Any], Any], arguments: type[Any]) -> Callable[..., Any]:
    """A function of an op's arguments as one tuple, called with keywords."""
    return lambda **inputs: function(arguments(**inputs))


@dataclass(frozen=True)
class Case:
    """One test case of an op, with its inputs and what to compare with.

    ``fused`` and ``eager`` take the same keyword arguments and return a tensor or a tuple of tensors. ``eager`` is the
    plain PyTorch that a user would write today; run on float64 inputs it is the exact result. ``inputs`` builds the
    arguments, the same for every call; every floating-point tensor among them has the given dtype, unless the op needs
    another (as for tables).
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
    # Timed in eager's place, if the exact result computes more than users do.
    baseline: Callable[..., Any] | None = None
