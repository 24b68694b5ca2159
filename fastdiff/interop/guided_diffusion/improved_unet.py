"""improved-diffusion's U-Net by its arguments: guided-diffusion's without the options that came later."""

from __future__ import annotations

from typing import Any

from fastdiff.interop.guided_diffusion import unet
from fastdiff.interop.guided_diffusion.unet import AttentionBlock as AttentionBlock
from fastdiff.interop.guided_diffusion.unet import Downsample as Downsample
from fastdiff.interop.guided_diffusion.unet import QKVAttentionLegacy
from fastdiff.interop.guided_diffusion.unet import ResBlock as ResBlock
from fastdiff.interop.guided_diffusion.unet import TimestepBlock as TimestepBlock
from fastdiff.interop.guided_diffusion.unet import TimestepEmbedSequential as TimestepEmbedSequential
from fastdiff.interop.guided_diffusion.unet import Upsample as Upsample

# Images may have any size that can be halved: resolutions are told by rates of downsampling.
_NOMINAL_SIZE = 256

QKVAttention = QKVAttentionLegacy


class UNetModel(unet.UNetModel):
    """The U-Net, ``forward(x, timesteps, y=None)``."""

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Any,
        dropout: float = 0,
        channel_mult: Any = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        num_heads: int = 1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
    ) -> None:
        super().__init__(
            image_size=_NOMINAL_SIZE,
            in_channels=in_channels,
            model_channels=model_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            conv_resample=conv_resample,
            dims=dims,
            num_classes=num_classes,
            use_checkpoint=use_checkpoint,
            num_heads=num_heads,
            num_heads_upsample=num_heads_upsample,
            use_scale_shift_norm=use_scale_shift_norm,
        )


class SuperResModel(UNetModel, unet.SuperResModel):
    """A U-Net that also sees a smaller image: its first convolution has twice ``in_channels``, as there."""
