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


# The arguments behind those that both have in the same places.
_IN_COMMON = 11
_LAST = ("num_heads", "num_heads_upsample", "use_scale_shift_norm")


class UNetModel(unet.UNetModel):
    """The U-Net, ``forward(x, timesteps, y=None)``, by guided-diffusion's arguments without ``image_size``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= zip(_LAST, args[_IN_COMMON:], strict=False)
        super().__init__(_NOMINAL_SIZE, *args[:_IN_COMMON], **options)


class SuperResModel(UNetModel, unet.SuperResModel):
    """A U-Net that also sees a smaller image: its first convolution has twice ``in_channels``, as there."""
