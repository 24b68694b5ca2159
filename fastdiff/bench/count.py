"""Multiply-accumulates and parameters of a network, by hooks in one pass on the meta device: nothing is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.backend import use_backend
from fastdiff.models import ModelConfig, UNetConfig, build_model
from fastdiff.models.classifier import AttentionPool
from fastdiff.nn import AttentionBlock

# Forward: a multiplication and a sum for each multiply-accumulate. Backward: two products as large, one for the
# gradient of the input and one for that of the weight. Recomputed activations are not counted.
TRAINING_FLOPS_PER_MAC = 6

Macs = Counter[str]  # by kind of layer: "convolution", "linear", "attention"


@dataclass(frozen=True)
class Compute:
    """Cost of one image in one forward pass, and the size of the network.

    Attributes:
        macs: multiply-accumulates of convolutions, linear layers and attention's two products. Norms, activations,
            softmax and resampling are not counted: they are bound by memory, not by arithmetic.
        parameters: number of learned parameters.
        macs_by_kind: multiply-accumulates of each kind of layer.
    """

    macs: int
    parameters: int
    macs_by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def training_flops(self) -> int:
        """Floating-point operations of one image's forward and backward pass: 6 times ``macs``."""
        return TRAINING_FLOPS_PER_MAC * self.macs


@cache
def count(config: ModelConfig) -> Compute:
    """The cost of the network that a configuration describes, for one image of ``config.image_size``.

    The method is that of Dhariwal & Nichol 2021, appendix A ("theoretical" throughput), with attention's products
    included.
    """
    size, channels = config.image_size, config.in_channels
    with torch.device("meta"):
        model = build_model(config)
        inputs = [torch.empty(1, channels, size, size), torch.zeros(1)]
        if isinstance(config, UNetConfig) and config.low_res is not None:
            inputs.append(torch.empty(1, channels, size, size))
        if isinstance(config, UNetConfig) and config.num_classes is not None:
            inputs.append(torch.zeros(1, dtype=torch.int64))
    macs = count_macs(model, lambda: model(*inputs))
    return Compute(sum(macs.values()), sum(p.numel() for p in model.parameters()), dict(macs))


def count_macs(model: nn.Module, call: Callable[[], Any]) -> Macs:
    """Multiply-accumulates of ``call()``, which runs ``model`` once or more, by kind of layer.

    Convolutions are counted by their direct form.
    """
    macs: Macs = Counter()

    def layer(module: Any, _: tuple[Tensor, ...], output: Tensor) -> None:
        kind = "linear" if isinstance(module, nn.Linear) else "convolution"
        macs[kind] += output.numel() * module.weight[0].numel()  # weight [Cout, Cin / groups, k, k]

    def attention(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        """The products q kᵀ and p v take Q K D each for every head, Q queries and K keys: together 2 Q K C."""
        n, c, h, w = inputs[0].shape
        tokens = h * w
        queries, keys = (1, tokens + 1) if isinstance(module, AttentionPool) else (tokens, tokens)
        macs["attention"] += 2 * n * queries * keys * c

    handles = []
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(layer))
        elif isinstance(module, (AttentionBlock, AttentionPool)):
            handles.append(module.register_forward_hook(attention))
    try:
        with torch.no_grad(), use_backend("eager"):
            call()
    finally:
        for handle in handles:
            handle.remove()
    return macs
