"""A U-Net's denoise on fused blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine import checks
from fastdiff.engine.blocks import FusedConv, PlainLayer, fused
from fastdiff.engine.trunk import FusedTrunk, Layers, outside_of_graphs
from fastdiff.engine.watch import why_not_called
from fastdiff.models import UNet, trunk
from fastdiff.nn import ResBlock


class FusedUNet(FusedTrunk):
    """Takes the place of ``UNet.denoise``."""

    is_lenient = True

    def __init__(self, model: UNet, dtype: torch.dtype) -> None:
        super().__init__(model, "denoise", dtype)

    def _make(self) -> Layers:
        model = self.model
        return Layers(
            down=[self._block(block) for block in model.input_blocks],
            middle=self._block(model.middle_block),
            up=[self._block(block) for block in model.output_blocks],
            out=self._out(model.out),
        )

    def _block(self, block: nn.Module) -> list[Any]:
        if reason := why_not_called(block, trunk.Block):
            return [self.as_it_is(block, reason=reason, embedded=True)]
        layers: Any = block
        return [self.place(layer, fused, embedded=isinstance(layer, ResBlock)) for layer in layers]

    def _out(self, out: Any) -> FusedConv | PlainLayer:
        def make(layer: Any, dtype: torch.dtype) -> FusedConv:
            norm, _, conv = layer
            return FusedConv(checks.convolution(conv), dtype, norm=checks.norm(norm, silu=True))

        return self.place(out, make)

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> prediction, as ``UNet.denoise``."""
        if not self.applies(x):
            return self.plain(x, emb)
        if torch.compiler.is_compiling():
            return outside_of_graphs(self, x, emb)
        layers, model = self.layers(), self.model
        if layers is None:
            return self.plain(x, emb)
        trunk.check_image(model.config, x, model._image_channels, emb)
        return self.run(layers, x, emb)
