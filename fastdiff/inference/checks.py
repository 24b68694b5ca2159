"""Layers that the kernels know: their classes and shapes are taken for granted afterwards."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastdiff.errors import FastdiffError
from fastdiff.nn import GroupNormSiLU
from fastdiff.nn.layers import Conv2d


def require(covered: bool, what: str) -> None:
    """Raises FastdiffError unless this is covered."""
    if not covered:
        raise FastdiffError(f"optimize does not cover {what}; the model is left as it was")


def convolution(layer: Any, stride: int = 1, padding: int | None = None) -> Any:
    """The layer, if it is a plain convolution of 3x3 or 1x1."""
    require(type(layer) in (nn.Conv2d, Conv2d), f"{type(layer).__name__} in the place of a convolution")
    k = layer.kernel_size[0]
    padding = k // 2 if padding is None else padding
    plain = (
        layer.kernel_size in ((1, 1), (3, 3))
        and layer.stride == (stride, stride)
        and layer.padding == (padding, padding)
        and layer.dilation == (1, 1)
        and (layer.groups, layer.padding_mode) == (1, "zeros")
    )
    require(plain, f"the convolution {layer}")
    return layer


def linear(layer: Any, *, of_tokens: bool = False) -> Any:
    """The layer, if it is a linear one; ``of_tokens``: a convolution of length 1, which is the same."""
    pointwise = type(layer) is nn.Conv1d and (layer.kernel_size, layer.stride, layer.groups) == (
        (1,),
        (1,),
        1,
    )
    is_linear = pointwise if of_tokens else type(layer) is nn.Linear
    require(is_linear, f"{type(layer).__name__} in the place of a linear layer")
    return layer


def norm(layer: Any, *, silu: bool | None = None) -> Any:
    """The layer, if it is a group norm; ``silu``: whether one of this package's has its activation in it."""
    ours = type(layer) is GroupNormSiLU and layer.silu == silu
    theirs = type(layer) is nn.GroupNorm and silu is None and layer.affine
    require(ours or theirs, f"{type(layer).__name__} in the place of a group norm")
    return layer


def activation(layer: Any) -> None:
    """Raises FastdiffError unless this is SiLU."""
    name = type(layer).__name__
    require(type(layer) is nn.SiLU, f"the activation {name}: act_fn must be 'silu' or 'swish'")
