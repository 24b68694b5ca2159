"""A U-Net's denoise on fused blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.backend import Backend, forced
from fastdiff.engine.blocks import (
    FusedAttention,
    FusedConv,
    FusedDownsample,
    FusedResBlock,
    FusedUpsample,
)
from fastdiff.engine.features import Features, Pair
from fastdiff.engine.packed import Packed, PackedConv, PackedProjections
from fastdiff.errors import FastdiffError
from fastdiff.models import UNet, trunk
from fastdiff.nn import AttentionBlock, Downsample, ResBlock, Upsample

_FUSED = {
    ResBlock: FusedResBlock,
    AttentionBlock: FusedAttention,
    Upsample: FusedUpsample,
    Downsample: FusedDownsample,
    nn.Conv2d: FusedConv,
}

_PLAIN = (Backend.EAGER, Backend.REFERENCE)  # wanted for comparison: then all of it


class FusedUNet:
    """Takes the place of ``UNet.denoise`` where no gradient is asked for.

    Args:
        model: keeps its parameters, which are read here when they change.
        dtype: of the activations and the packed weights; statistics and sums are float32 whatever it is.
    """

    def __init__(self, model: UNet, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self._plain = type(model).denoise
        self.down = [self._block(block) for block in model.input_blocks]
        self.middle = self._block(model.middle_block)
        self.up = [self._block(block) for block in model.output_blocks]
        out: Any = model.out
        self.out = FusedConv(out[2], dtype, norm=out[0])
        residual: list[Any] = [f for f in self._layers() if isinstance(f, FusedResBlock)]
        self.projections = PackedProjections([f.block.emb_layers[1] for f in residual])

    def _block(self, block: Any) -> list[Any]:
        return [_FUSED[type(layer)](layer, self.dtype) for layer in block]

    def _layers(self) -> Iterator[Any]:
        for block in (*self.down, self.middle, *self.up):
            yield from block

    def packed(self) -> list[Packed]:
        layers = [*self._layers(), self.out]
        return [self.projections, *(p for layer in layers for p in layer.packed())]

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> prediction, as ``UNet.denoise``."""
        model = self.model
        if torch.is_grad_enabled() or model.training or x.dtype == torch.float64 or forced() in _PLAIN:
            return self._run_plain(x, emb)
        trunk.check_image(model.config, x, model._image_channels, emb)
        h = Features(x.to(self.dtype, memory_format=torch.channels_last))
        projected = iter(self.projections(emb))
        skips = []
        for block in self.down:
            h = self._run(block, Pair(h), projected)
            skips.append(h)
        h = self._run(self.middle, Pair(h), projected)
        for block in self.up:
            h = self._run(block, Pair(h, skips.pop()), projected)
        out = self.out(Pair(h)).x
        like = (
            torch.channels_last
            if x.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        return out.to(x.dtype, memory_format=like)

    def _run_plain(self, x: Tensor, emb: Tensor) -> Tensor:
        if any(isinstance(p, PackedConv) and p.is_freed() for p in self.packed()):
            raise FastdiffError(
                "this model's weights were freed by optimize(): it runs in eval mode under torch.no_grad() or"
                " torch.inference_mode(), on inputs that are not float64; restore() it for anything else"
            )
        if torch.is_grad_enabled() or self.model.training:
            for packed in self.packed():
                packed.forget()  # what comes next may be an optimizer's step
        return self._plain(self.model, x, emb)

    @staticmethod
    def _run(block: list[Any], inputs: Pair, projected: Iterator[Tensor]) -> Features:
        for layer in block:
            out = layer(inputs, next(projected)) if isinstance(layer, FusedResBlock) else layer(inputs)
            inputs = Pair(out)
        return inputs.left
