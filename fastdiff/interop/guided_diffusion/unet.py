"""guided-diffusion's networks under its names, arguments and keys; the layers are fastdiff's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.interop.guided_diffusion.layers import AttentionBlock as AttentionBlock
from fastdiff.interop.guided_diffusion.layers import AttentionPool2d as AttentionPool2d
from fastdiff.interop.guided_diffusion.layers import Downsample as Downsample
from fastdiff.interop.guided_diffusion.layers import QKVAttention as QKVAttention
from fastdiff.interop.guided_diffusion.layers import QKVAttentionLegacy as QKVAttentionLegacy
from fastdiff.interop.guided_diffusion.layers import ResBlock as ResBlock
from fastdiff.interop.guided_diffusion.layers import TimestepBlock as TimestepBlock
from fastdiff.interop.guided_diffusion.layers import TimestepEmbedSequential as TimestepEmbedSequential
from fastdiff.interop.guided_diffusion.layers import Upsample as Upsample
from fastdiff.interop.guided_diffusion.layers import check_dims
from fastdiff.interop.guided_diffusion.layers import count_flops_attn as count_flops_attn
from fastdiff.models import Classifier, SuperResUNet, UNet
from fastdiff.models.config import ClassifierConfig, UNetConfig


class _Trunk(nn.Module):
    """Attributes and methods of the original's networks besides their layers.

    Half precision is asked for at construction, cast by ``convert_to_fp16``. Weights are channels_last, which makes the
    features so, whatever the images are: the layout that the kernels are for.
    """

    use_fp16: bool

    def __init__(self, config: UNetConfig | ClassifierConfig) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue] (the network, which is next)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _tell(self, **as_given: Any) -> None:
        """The attributes by which scripts ask what they have built."""
        names = ("image_size", "in_channels", "model_channels", "num_res_blocks", "dropout", "conv_resample")
        names += ("use_checkpoint", "num_heads", "num_head_channels")
        config: Any = self.config  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in {**{name: getattr(config, name) for name in names}, **as_given}.items():
            setattr(self, name, value)

    def convert_to_fp16(self) -> None:
        """Cast the trunk's convolutions to float16; norms, linear layers and the output stay float32."""
        self.half_trunk(torch.float16)  # pyright: ignore[reportCallIssue]

    def convert_to_fp32(self) -> None:
        """Back to float32."""
        self.half_trunk(torch.float32)  # pyright: ignore[reportCallIssue]


class UNetModel(_Trunk, UNet):
    """The U-Net, ``forward(x, timesteps, y=None)``. ``attention_resolutions`` are rates of downsampling here.

    Attention recomputes in the backward only if ``use_checkpoint`` is set (the original's always does).

    Raises:
        NotImplementedError: dims other than 2.
    """

    _low_res: Any = None

    def __init__(
        self,
        image_size: int,
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
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        check_dims(dims)
        self.use_fp16 = use_fp16
        config = UNetConfig(
            image_size=image_size,
            in_channels=in_channels,
            model_channels=model_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=_pixels(image_size, attention_resolutions),
            dropout=dropout,
            channel_mult=tuple(channel_mult),
            conv_resample=conv_resample,
            num_classes=num_classes,
            use_checkpoint=use_checkpoint,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            num_heads_upsample=num_heads_upsample,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            low_res=self._low_res,
        )
        super().__init__(config)
        self._tell(
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            num_classes=num_classes,
            num_heads_upsample=num_heads if num_heads_upsample == -1 else num_heads_upsample,
            out_channels=out_channels,
        )


class SuperResModel(UNetModel, SuperResUNet):
    """A U-Net that also sees a smaller image: ``forward(x, timesteps, low_res=None, y=None)``."""

    _low_res = "bilinear"

    def forward(self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, **kwargs: Any) -> Tensor:
        return SuperResUNet.forward(self, x, timesteps, low_res, **kwargs)


class EncoderUNetModel(_Trunk, Classifier):
    """The noisy-image classifier, ``forward(x, timesteps)`` -> logits.

    Raises:
        NotImplementedError: dims other than 2, or a pool that the original does not have.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Any,
        dropout: float = 0,
        channel_mult: Any = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: Any = "adaptive",
    ) -> None:
        check_dims(dims)
        if pool not in ("adaptive", "attention", "spatial", "spatial_v2"):
            raise NotImplementedError(f"Unexpected {pool} pooling")
        self.use_fp16 = use_fp16
        config = ClassifierConfig(
            image_size=image_size,
            in_channels=in_channels,
            model_channels=model_channels,
            num_outputs=out_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=_pixels(image_size, attention_resolutions),
            dropout=dropout,
            channel_mult=tuple(channel_mult),
            conv_resample=conv_resample,
            use_checkpoint=use_checkpoint,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            num_heads_upsample=num_heads_upsample,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            pool=pool,
        )
        super().__init__(config)
        self._tell(
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            num_heads_upsample=num_heads if num_heads_upsample == -1 else num_heads_upsample,
            out_channels=out_channels,
            pool=pool,
        )


def _pixels(image_size: int, rates: Any) -> tuple[int, ...]:
    return tuple(image_size // rate for rate in rates)
