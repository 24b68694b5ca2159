"""A U-Net's denoise on fused blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.blocks import FusedConv, fused
from fastdiff.engine.trunk import FusedTrunk
from fastdiff.models import UNet, trunk


class FusedUNet(FusedTrunk):
    """Takes the place of ``UNet.denoise``."""

    def __init__(self, model: UNet, dtype: torch.dtype) -> None:
        def block(layers: Any) -> list[Any]:
            return [fused(layer, dtype) for layer in layers]

        out: Any = model.out
        super().__init__(
            model,
            "denoise",
            dtype,
            down=[block(layers) for layers in model.input_blocks],
            middle=block(model.middle_block),
            up=[block(layers) for layers in model.output_blocks],
            out=FusedConv(out[2], dtype, norm=out[0]),
        )

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C, H, W], embedding [N, E] -> prediction, as ``UNet.denoise``."""
        if not self.applies(x):
            return self.plain(x, emb)
        model = self.model
        trunk.check_image(model.config, x, model._image_channels, emb)
        return self.run(x, emb)
