"""The way down, through the middle and up on fused blocks: what all U-Nets have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastdiff.backend import Backend, forced
from fastdiff.engine.blocks import FusedConv, FusedResBlock
from fastdiff.engine.features import Features, Pair
from fastdiff.engine.packed import Packed, PackedConv, PackedProjections
from fastdiff.errors import FastdiffError

_PLAIN = (Backend.EAGER, Backend.REFERENCE)  # wanted for comparison: then all of it


class FusedTrunk:
    """Takes the place of one of a model's methods where no gradient is asked for.

    Args:
        model: keeps its parameters, which are read here when they change.
        method: the name of what it stands in for.
        dtype: of the activations and the packed weights; statistics and sums are float32 whatever it is.
        down: blocks, each a list of layers; what a block puts out is also a skip connection.
        middle: layers.
        up: blocks, each taking one skip connection.
        out: the last layer.
    """

    def __init__(
        self,
        model: Any,
        method: str,
        dtype: torch.dtype,
        *,
        down: list[list[Any]],
        middle: list[Any],
        up: list[list[Any]],
        out: FusedConv,
    ) -> None:
        self.model, self.method, self.dtype = model, method, dtype
        self.down, self.middle, self.up, self.out = down, middle, up, out
        self._replaced = getattr(type(model), method)
        residual = [f for f in self._layers() if isinstance(f, FusedResBlock)]
        self.projections = PackedProjections([f.parts.projection for f in residual])

    def _layers(self) -> Iterator[Any]:
        for block in (*self.down, self.middle, *self.up):
            yield from block

    def packed(self) -> list[Packed]:
        layers = [*self._layers(), self.out]
        return [self.projections, *(p for layer in layers for p in layer.packed())]

    def applies(self, x: Any) -> bool:
        """Whether the fused layers are for this input, here and now."""
        return not (
            torch.is_grad_enabled()
            or self.model.training
            or forced() in _PLAIN
            or (isinstance(x, Tensor) and (x.dtype == torch.float64 or x.device.type != "cpu"))
        )

    def plain(self, *args: Any) -> Any:
        """The method as it was."""
        if any(isinstance(p, PackedConv) and p.is_freed() for p in self.packed()):
            raise FastdiffError(
                "this model's weights were freed by optimize(): it runs in eval mode under torch.no_grad() or"
                " torch.inference_mode(), on inputs that are not float64; restore() it for anything else"
            )
        if torch.is_grad_enabled() or self.model.training:
            for packed in self.packed():
                packed.forget()  # what comes next may be an optimizer's step
        return self._replaced(self.model, *args)

    def run(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> [N, C', H, W] in x's dtype and layout."""
        h = Features(x.to(self.dtype, memory_format=torch.channels_last))
        projected = iter(self.projections(emb))
        skips = []
        for block in self.down:
            h = _through(block, Pair(h), projected)
            skips.append(h)
        h = _through(self.middle, Pair(h), projected)
        for block in self.up:
            h = _through(block, Pair(h, skips.pop()), projected)
        out = self.out(Pair(h)).x
        like = (
            torch.channels_last
            if x.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        return out.to(x.dtype, memory_format=like)


def _through(block: list[Any], inputs: Pair, projected: Iterator[Tensor]) -> Features:
    for layer in block:
        out = layer(inputs, next(projected)) if isinstance(layer, FusedResBlock) else layer(inputs)
        inputs = Pair(out)
    return inputs.left
