"""Low-rank adapters (LoRA): small matrices that are trained in place of a network's weights, and merged into them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_PART = ".parametrizations.weight."  # between a layer's name and that of the weight's original or adapter


class LowRank(nn.Module):
    """W -> W + B A, with W [O,*] seen as a matrix [O,I], A as [rank,I] and B, which is zero at first, as [O,rank].

    A convolution's A is a convolution [rank,C,kh,kw] to ``rank`` channels and B [O,rank,1,1] one of 1 x 1, as in peft.

    Source: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", section 4.1, with alpha = rank.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank, *[1] * (weight.ndim - 2)))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as for a linear layer

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return added(weight, self.A, self.B)


def added(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W + B A."""
    return weight + (b.flatten(1) @ a.flatten(1)).view(weight.shape)


def add_adapters(model: nn.Module, rank: int, whole: Collection[str] = ()) -> None:
    """Freeze a network but for an adapter on each linear layer and convolution that has more weights than its adapter.

    Args:
        whole: names of parameters that are trained themselves.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in whole)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and f"{name}.weight" not in whole:
            weight = layer.weight
            if rank * (len(weight) + weight[0].numel()) < weight.numel():
                parametrize.register_parametrization(layer, "weight", LowRank(weight.detach(), rank))


def merge(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network with adapters as those of one without; others are left as they are."""
    merged = {}
    for name, value in tensors.items():
        layer, adapted, part = name.partition(_PART)
        if not adapted:
            merged[name] = value
        elif part == "original":
            a, b = (tensors[f"{layer}{_PART}0.{matrix}"] for matrix in "AB")
            merged[f"{layer}.weight"] = added(value, a, b)
    return merged


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapters under the names LAYER.lora_A.weight and LAYER.lora_B.weight, as peft has them; others as they are."""
    found = {}
    for name, value in tensors.items():
        layer, adapted, part = name.partition(_PART)
        found[f"{layer}.lora_{part[-1]}.weight" if adapted else name] = value
    return found
